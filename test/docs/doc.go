// Package docs runs the commands that README.md and docs/ tell people to type.
//
// A fenced block with a line that begins with rscctl or bin/rscctl is marked by the word behind sh: run, and TestDocumentedCommandsRun executes
// it; by-hand, when it needs what a test has not (libvirt, a service manager) or takes minutes. A synopsis is marked text. Every command line of
// either kind, and those in code spans, has to be one that the command line takes (cmd/rscctl, TestDocumentedCommandLinesAreTaken).
package docs
