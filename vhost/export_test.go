package vhost

// Touching makes a port call f before each touch of guest memory on its control side: see guestmem.Options.
func (c *Config) Touching(f func()) { c.touching = f }

// HaltIntake makes a port take no more connections, as one whose process has died.
func (p *Port) HaltIntake() { p.halt(p.intake) }
