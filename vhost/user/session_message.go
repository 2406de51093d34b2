package user

import (
	"errors"
	"fmt"
)

// deal serves the message in the socket, takes it off and answers it. An error ends the
// session.
func (s *Session) deal(m *Message) error {
	var reply []byte
	err := s.conn.Look(m)
	if err == nil {
		reply, err = s.serve(m)
		m.CloseFDs()
		s.again = false
	}
	if err != nil && !(isRefusal(err) && reply != nil) {
		// Not taken off before: whoever goes on finds the message, and ends the session as well.
		if reply != nil {
			if serr := s.conn.Send(m.Request, replyFlags, reply); serr != nil {
				err = fmt.Errorf("%w; %w", err, serr)
			}
		}
		_ = s.conn.Drop()
		return err
	}
	if serr := s.finish(m, reply); serr != nil {
		return serr
	}
	switch {
	case err == nil:
	case s.refusals > maxRefusals:
		return fmt.Errorf("%w, the last: %w", ErrRefusals, err)
	case s.refusals <= 8: // a peer must not fill the log
		s.cfg.Logf("refused: %v", err)
	}
	return nil
}

// finish takes a message that is dealt with off the socket, and answers it unless reply
// is nil. With a journal, whoever goes on may come at any point of it: the answer is in
// the file before the message goes, and the file knows whether it is sent.
func (s *Session) finish(m *Message, reply []byte) error {
	if s.cfg.Journal == nil {
		err := s.conn.Drop()
		if err == nil && reply != nil {
			err = s.conn.Send(m.Request, replyFlags, reply)
		}
		return err
	}
	var a Answer
	if reply != nil {
		unread, err := s.conn.unread()
		if err == nil {
			a, err = s.answers.put(appendMessage(nil, m.Request, replyFlags, reply), unread > 0)
		}
		if err != nil {
			return err
		}
	}
	s.cfg.Journal.Done(m.Request.changes(), a)
	err := s.conn.Drop()
	if err == nil && reply != nil {
		if err = s.answers.send(s.conn, a); err == nil {
			s.cfg.Journal.End()
		}
	}
	return err
}

// serve does what a message asks for. reply is the answer's payload, nil where none
// is wanted. An error ends the session, unless it is a refusal that is answered.
func (s *Session) serve(m *Message) (reply []byte, err error) {
	if m.Flags&FlagReply != 0 {
		return nil, fmt.Errorf("%s: reply where a request belongs: %w", m.Request, ErrBadHeader)
	}
	reply, err = s.dispatch(m)
	s.publish()
	ack := m.Flags&FlagNeedReply != 0 && s.protocol.Has(ProtoReplyAck) && reply == nil
	if err != nil {
		err = fmt.Errorf("%s: %w", m.Request, err)
		reply = nil
		if ack {
			reply = AppendU64(nil, 1)
			if isRefusal(err) {
				s.refusals++
			}
		}
		return reply, err
	}
	if ack {
		reply = AppendU64(nil, 0)
	}
	return reply, nil
}

// isRefusal says whether the front-end can live with a negative answer: it asked
// for something optional, and nothing has changed. All else is a front-end that
// is broken or hostile.
func isRefusal(err error) bool {
	for _, target := range []error{ErrUnknown, ErrUnsupported, ErrMTU, ErrTooManySlots, ErrNoRegion} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// dispatch finds the request's handler. A mistake of ours ends the session, with
// the name of the request. A fault in guest memory is no panic here: handlers
// touch guest memory only inside guestmem.Table.Touch.
func (s *Session) dispatch(m *Message) (reply []byte, err error) {
	defer caught(&err)
	if m.Request >= numRequests || handlers[m.Request].run == nil {
		return nil, ErrUnknown
	}
	h := &handlers[m.Request]
	if h.size >= 0 && len(m.Payload) != h.size {
		return nil, fmt.Errorf("%d bytes: %w", len(m.Payload), ErrBadPayload)
	}
	return h.run(s, m)
}
