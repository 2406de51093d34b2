package main

import (
	"os"

	"github.com/rscctl/rscctl/controller/api"
)

// Colours of ECMA-48's SGR, from the eight that every terminal has.
const (
	colourGood = "\x1b[32m"
	colourWarn = "\x1b[33m"
	colourBad  = "\x1b[31m"
	colourDim  = "\x1b[2m"
	colourHead = "\x1b[1m"
	colourNone = "\x1b[0m"
)

// colours tells whether what is written to w may have colours: it is a terminal that has them, and nobody has forbidden them
// (https://no-color.org).
func colours(w any) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && !dumb()
}

// dumb tells whether the terminal is one that cannot move its cursor, or of a kind that nobody knows.
func dumb() bool {
	kind := os.Getenv("TERM")
	return kind == "" || kind == "dumb"
}

func healthColour(h api.HealthState) string {
	switch h {
	case api.HealthGood:
		return colourGood
	case api.HealthDegraded:
		return colourWarn
	}
	return colourBad
}
