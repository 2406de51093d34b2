// Package top is what `rscctl top` shows, without a terminal: from two looks at a controller it makes rows with rates, orders and
// filters them, keeps what was before for sparklines, and lays all of it out for a screen of any size. It knows no socket, no
// terminal and no clock, so all of it is tested on made-up looks.
package top
