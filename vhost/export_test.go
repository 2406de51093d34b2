package vhost

// Touching makes a port call f before each touch of guest memory on its control side: see guestmem.Options.
func (c *Config) Touching(f func()) { c.touching = f }
