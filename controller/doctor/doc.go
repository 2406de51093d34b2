// Package doctor says what of a host keeps rscctl from working, or from working well, and what mends it.
//
// It has three parts. [Gather] and [GatherHost] look at the host and change nothing. [Examine] and [Needs] judge what was found:
// pure functions over [Facts], one small function a check. [Fix] makes the changes that are safe to make, after they were
// recorded, and [Undo] takes them back.
//
// Fix has an undo list of its own, in a folder of the state directory and under its own lock. A running controller holds its
// list open and undoes all of it when it stops, so the two must not share one; and since an offload is asked for by its final
// state, neither takes back what the other one changed: who comes second finds nothing to change and records nothing.
package doctor
