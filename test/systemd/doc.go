// Package systemd tests the Debian package and the service in it as an administrator meets them: installed, started, upgraded, crashed,
// hung and purged under a real systemd. The tests change the system that they run in, so they run in the throw-away VM of
// `go run ./test/hostvm systemd` only.
package systemd
