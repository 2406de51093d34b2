package main

import (
	"fmt"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func versionCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if _, err := positionals(c, 0, 0, ""); err != nil {
				return err
			}
			asJSON, err := format(c)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(s.out, map[string]any{"schema": api.Schema, "version": version()})
			}
			_, err = fmt.Fprintln(s.out, "rscctl", version())
			return err
		},
	}
}

// release is the version of a package, which 'make package' has the linker write here.
var release string

// version is that of a package, or else the module's version, or for a build from a checkout "devel" and its commit.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v, revision, dirty := info.Main.Version, "", ""
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = " " + s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = " (modified)"
		}
	}
	return v + revision + dirty
}
