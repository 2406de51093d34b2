package netdev

import "time"

// What the tests outside the package need of its inside. They are outside because the helper package that gives them
// namespaces uses this one.

// SetChannels changes the number of channels by the ioctl, as `ethtool -L` of old did.
func (h *Handle) SetChannels(name string, rx, tx uint32) error {
	return h.eth.setChannels(name, channels{rx: rx, tx: tx})
}

// ListedQueues counts RX queues by the netdev family.
func (h *Handle) ListedQueues(index int) (int, error) { return h.netdevRxQueues(index) }

// NewWatcherEvery is NewWatcher with another interval.
func NewWatcherEvery(interval time.Duration) (*Watcher, error) { return newWatcher(interval) }
