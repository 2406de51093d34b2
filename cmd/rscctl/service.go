package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller"
	"github.com/rscctl/rscctl/controller/fdstore"
)

// service is a controller under a service manager that speaks sd_notify(3), or in a shell, where nobody is told anything.
type service struct {
	ctl     *controller.Controller
	store   *fdstore.Store // the way to the service manager, nil for none
	log     *slog.Logger
	config  string           // file of described VMs, "" for none
	hangups <-chan os.Signal // SIGHUP
}

// attend tells the service manager when the controller serves, what it is doing, and when it stops; it puts the described VMs in force
// at start and again at every SIGHUP. It returns when ctx has ended.
func (s *service) attend(ctx context.Context) {
	go s.watchdog(ctx)
	select {
	case <-s.ctl.Serving():
	case <-ctx.Done():
		return
	}
	s.ready(s.configure(ctx))
	for {
		select {
		case <-s.hangups:
			s.notify(daemon.SdNotifyReloading, "MONOTONIC_USEC="+fmt.Sprint(monotonic().Microseconds()))
			s.log.Info("asked to look at everything anew, by SIGHUP", "config", s.config)
			s.ctl.LookAgain()
			s.ready(s.configure(ctx))
		case <-ctx.Done():
			s.notify(daemon.SdNotifyStopping, "STATUS=giving the interfaces back")
			return
		}
	}
}

func (s *service) ready(status string) { s.notify(daemon.SdNotifyReady, "STATUS="+status) }

// watchdog feeds the service manager's watchdog as long as the workers live: what is not fed in time is ended and started again.
func (s *service) watchdog(ctx context.Context) {
	every := s.ctl.Watchdog()
	if every == 0 {
		return
	}
	tick := time.NewTicker(every / 4)
	defer tick.Stop()
	for told := ""; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		err := s.ctl.Alive()
		if err == nil {
			told = ""
			s.notify(daemon.SdNotifyWatchdog)
		} else if told != err.Error() {
			told = err.Error()
			s.log.Error("watchdog: not fed", "err", err)
		}
	}
}

// notify sends variables. Without a service manager it does nothing.
func (s *service) notify(state ...string) {
	if err := s.store.Tell(state...); err != nil {
		s.log.Warn("service manager", "err", err)
	}
}

// monotonic is CLOCK_MONOTONIC, which the service manager compares with its own.
func monotonic() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
