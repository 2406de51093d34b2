// Package report turns a snapshot of the controller into what an operator sees: status, statistics and warnings. Its functions
// are pure: they read the snapshot and nothing else, so they are tested without a NIC, a guest or privileges.
package report
