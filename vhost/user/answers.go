package user

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// answersRoom bounds what a front-end may leave unread, in bytes: more than its socket takes.
const answersRoom = 64 << 10

// answers is a memory file from which answers are sent. sendfile(2) moves the file's position in the call that sends, and the
// position belongs to the file and not to the process: whoever goes on after a crash finds there what was sent.
type answers struct {
	fd   int
	next int // bytes of it that are used, and perhaps not read yet: what was sent are its pages
}

// Answer is one in the file: where it is, and how long, in bytes. The zero value is none.
type Answer struct {
	At, Bytes int
}

func newAnswers() (*answers, error) {
	fd, err := unix.MemfdCreate("rscctl-answers", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("answers: %w", os.NewSyscallError("memfd_create", err))
	}
	return &answers{fd: fd}, nil
}

// adoptAnswers goes on with the file of a session before. Whatever is in it may not have been read.
func adoptAnswers(fd int) (*answers, error) {
	end, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	if err != nil || end < 0 || end > answersRoom {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("answers: at %d: %w: %w", end, ErrParcel, err)
	}
	return &answers{fd: fd, next: int(end)}, nil
}

// close may be called on nil, and twice.
func (a *answers) close() {
	if a != nil && a.fd >= 0 {
		_ = unix.Close(a.fd)
		a.fd = -1
	}
}

// put writes an answer that send sends. unread says whether the front-end may have some to read.
func (a *answers) put(b []byte, unread bool) (Answer, error) {
	if !unread {
		a.next = 0
	}
	if len(b) > answersRoom-a.next {
		return Answer{}, fmt.Errorf("answers: %d bytes are not read: %w", a.next, ErrTimeout)
	}
	where := Answer{At: a.next, Bytes: len(b)}
	if _, err := unix.Pwrite(a.fd, b, int64(where.At)); err != nil {
		return Answer{}, fmt.Errorf("answers: %w", err)
	}
	if _, err := unix.Seek(a.fd, int64(where.At), unix.SEEK_SET); err != nil {
		return Answer{}, fmt.Errorf("answers: %w", err)
	}
	a.next += len(b)
	return where, nil
}

// send sends what of an answer is not sent yet.
func (a *answers) send(c *Conn, what Answer) error {
	raw, err := c.c.SyscallConn()
	if err == nil {
		err = c.c.SetWriteDeadline(time.Now().Add(messageTimeout))
	}
	if err != nil {
		return peerError(err)
	}
	var serr error
	err = raw.Write(func(fd uintptr) (done bool) {
		for left := 0; ; {
			if left, serr = a.left(what); serr != nil || left == 0 {
				return true
			}
			var n int
			switch n, serr = unix.Sendfile(int(fd), a.fd, nil, left); {
			case errors.Is(serr, unix.EAGAIN):
				return false
			case serr == nil && n == 0:
				serr = fmt.Errorf("answers: the file ends in front of %d bytes: %w", left, ErrParcel)
				return true
			case serr != nil && !errors.Is(serr, unix.EINTR):
				return true
			}
		}
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return peerError(err)
	}
	return nil
}

// left is how many bytes of an answer are not sent.
func (a *answers) left(what Answer) (int, error) {
	at, err := unix.Seek(a.fd, 0, unix.SEEK_CUR)
	if err != nil {
		return 0, err
	}
	left := what.At + what.Bytes - int(at)
	if what.At < 0 || what.Bytes < 0 || what.Bytes > HeaderSize+MaxPayload || left < 0 || left > what.Bytes {
		return 0, fmt.Errorf("answer of %d bytes at %d, and the file at %d: %w", what.Bytes, what.At, at, ErrParcel)
	}
	return left, nil
}

// unread is the memory of what was sent and the peer has not read; unix(7): SIOCOUTQ.
func (c *Conn) unread() (n int, err error) {
	err = c.control(func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		return err
	})
	return n, err
}

// Again tells the session, before it runs, that the one before had begun with the
// message that is next: what it starts may run already, and goes on where it is.
func (s *Session) Again() { s.again = true }

// Owe makes the session, before it runs, begin with the answer that the one before was
// about to send: to the request of that name, as its journal was told by Done.
func (s *Session) Owe(request string, a Answer) error {
	if s.answers == nil {
		return fmt.Errorf("answer to %.32q: no file: %w", request, ErrParcel)
	}
	_, err := s.answers.left(a)
	s.owed, s.owedTo = a, request
	return err
}

// settle ends what the session before had begun: the message goes off the socket, if it
// is still there, and the answer is sent, if it is not. A front-end that waits for an
// answer asks nothing else, so a request of the same name is that one.
func (s *Session) settle(m *Message) error {
	if s.owed.Bytes == 0 {
		return nil
	}
	left, err := s.answers.left(s.owed)
	if err == nil && left == s.owed.Bytes {
		err = s.dropOwed(m)
	}
	if err == nil && left > 0 {
		err = s.answers.send(s.conn, s.owed)
	}
	if err != nil {
		return err
	}
	s.owed = Answer{}
	s.cfg.Journal.End()
	return nil
}

func (s *Session) dropOwed(m *Message) error {
	var now arrived
	err := s.conn.control(func(fd int) (err error) {
		now, err = lookAhead(fd, 0)
		return err
	})
	switch {
	case err != nil:
		return peerError(err)
	case !now.whole || now.header.Request.String() != s.owedTo:
		return nil
	}
	err = s.conn.Look(m)
	m.CloseFDs()
	if err == nil {
		err = s.conn.Drop()
	}
	return err
}

// restoreAnswers keeps the session's own file where there is none, as of an older version.
func (s *Session) restoreAnswers(name string, files *Files) error {
	if name == "" || s.answers == nil {
		return nil
	}
	fd, err := files.Take(name)
	if err != nil {
		return err
	}
	theirs, err := adoptAnswers(fd)
	if err != nil {
		return fmt.Errorf("file %.64q: %w", name, err)
	}
	s.answers.close()
	s.answers = theirs
	return nil
}
