package engine

import (
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// A task that leaves takes nothing with it: its directory stays, because it may come back soon, and is removed when it
// has not. How long ago it was held is the time of its directory, which is set again and again while it is, and so goes
// on over restarts.

const (
	// maxCleanupPause is how often directories are looked at, at least; a tenth of the delay when that is shorter.
	maxCleanupPause = time.Minute
	// cleanupGrace is how long a member must have been in the group before it removes anything: what it had before is
	// about to be given back to it.
	cleanupGrace = 30 * time.Second
)

// subName is what the name of a sub-topology looks like, which is that of a topic. What starts with a dot or another
// sign is not a task's.
var subName = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9._-]*$`)

// trashName is the name of a directory while it is removed: what is left of it was not removed to the end.
var trashName = regexp.MustCompile(`^[0-9]+\.trash-[A-Z0-9]+$`)

// cleanupPause returns the time between two looks.
func (s *Settings) cleanupPause() time.Duration { return min(s.CleanupDelay/10, maxCleanupPause) }

// cleanUp starts a look at the state directory when it is time.
func (s *session) cleanUp() {
	if s.e.root == nil || s.e.cfg.CleanupDelay <= 0 || !s.joined {
		return
	}
	now := s.e.cfg.Now()
	if s.firstClean.IsZero() {
		s.firstClean = now.Add(min(s.e.cfg.CleanupDelay, cleanupGrace))
	}
	if now.Before(s.nextClean) || !s.cleaning.CompareAndSwap(false, true) {
		return
	}
	s.nextClean = now.Add(s.e.cfg.cleanupPause())
	held, remove := s.held(), !now.Before(s.firstClean)
	s.async.Add(1)
	go func() {
		defer s.async.Done()
		defer s.cleaning.Store(false)
		s.e.cleanDirs(now, held, remove)
	}()
}

// held returns the tasks whose directories are in use here, in whatever role.
func (s *session) held() map[task.ID]bool {
	held := map[task.ID]bool{}
	for id := range s.tasks {
		held[id] = true
	}
	for id, closed := range s.closing {
		select {
		case <-closed:
		default:
			held[id] = true
		}
	}
	s.standbys.addHeld(held)
	return held
}

// addHeld adds the tasks of which a copy is here, or on its way in or out.
func (b *standbys) addHeld(held map[task.ID]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.wanted {
		held[id] = true
	}
	for id := range b.copies {
		held[id] = true
	}
	for id := range b.active {
		held[id] = true
	}
	for id, closed := range b.closing {
		select {
		case <-closed:
		default:
			held[id] = true
		}
	}
}

// cleanDirs sets the times of the directories of held tasks, and, if it may, removes those of others that are old.
// Sub-topologies that the program does not have any more are looked at, too.
func (e *Engine) cleanDirs(now time.Time, held map[task.ID]bool, remove bool) {
	subs, err := fs.ReadDir(e.root.FS(), ".")
	if err != nil {
		e.log.Warn("cannot look for state directories to remove", zap.Error(err))
		return
	}
	for _, sub := range subs {
		if !sub.IsDir() || !subName.MatchString(sub.Name()) {
			continue
		}
		entries, err := fs.ReadDir(e.root.FS(), sub.Name())
		if err != nil {
			e.log.Warn("cannot look for state directories to remove", zap.String("sub", sub.Name()), zap.Error(err))
			continue
		}
		left := len(entries)
		for _, entry := range entries {
			if e.cleanDir(now, sub.Name(), entry, held, remove) {
				left--
			}
		}
		if left == 0 && remove && e.p.sub(sub.Name()) == nil {
			_ = e.root.Remove(sub.Name()) // it stays when something came meanwhile
		}
	}
}

// cleanDir looks at one entry of the directory of a sub-topology, and tells whether it has removed it.
func (e *Engine) cleanDir(now time.Time, sub string, entry fs.DirEntry, held map[task.ID]bool, remove bool) bool {
	rel := path.Join(sub, entry.Name())
	info, err := e.root.Lstat(rel)
	if err != nil || !info.IsDir() {
		return false
	}
	old := remove && now.Sub(info.ModTime()) >= e.cfg.CleanupDelay
	if trashName.MatchString(entry.Name()) {
		return old && e.root.RemoveAll(rel) == nil
	}
	p, err := strconv.ParseInt(entry.Name(), 10, 32)
	if err != nil || p < 0 || strconv.FormatInt(p, 10) != entry.Name() {
		return false
	}
	id := task.ID{Sub: sub, Partition: int32(p)}
	if held[id] {
		if err := e.root.Chtimes(rel, now, now); err != nil {
			e.log.Warn("cannot note that a task is here", zap.Stringer("task", id), zap.Error(err))
		}
		return false
	}
	if !old {
		return false
	}
	err = e.removeState(id)
	switch {
	case errors.Is(err, state.ErrLocked):
		return false // it is being opened, or another process looks into it
	case err != nil:
		e.log.Warn("cannot remove the local state of a task that is not here any more", zap.Stringer("task", id), zap.Error(err))
		return false
	}
	e.log.Info("removed the local state of a task that is not here any more", zap.Stringer("task", id),
		zap.Duration("unused_for", now.Sub(info.ModTime()).Round(time.Second)))
	if f := e.cfg.Events.Cleaned; f != nil {
		f(id)
	}
	return true
}

// removeState removes the directory of a task, unless somebody has it open.
func (e *Engine) removeState(id task.ID) error {
	rel := taskPath(id)
	if e.p.DestroyState != nil {
		return e.p.DestroyState(filepath.Join(e.cfg.StateDir, filepath.FromSlash(rel)))
	}
	return e.root.RemoveAll(rel)
}
