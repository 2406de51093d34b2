package api

// HealthState says whether something does what it is there for.
type HealthState string

const (
	HealthGood     HealthState = "good"
	HealthDegraded HealthState = "degraded" // it works, and something is lost or is not as was asked for
	HealthDown     HealthState = "down"     // it does not work
)

// Health is that of the controller, an interface, a queue or a VM. Each reason is one line; there is none when it is good.
type Health struct {
	State   HealthState `json:"state"`
	Reasons []string    `json:"reasons"`
}

// LinkState is what an interface's frames find.
type LinkState string

const (
	LinkUp        LinkState = "up"
	LinkDown      LinkState = "down"       // switched off
	LinkNoCarrier LinkState = "no_carrier" // switched on, and nobody is at the other end
)
