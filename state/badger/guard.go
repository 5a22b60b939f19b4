package badger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	bdg "github.com/dgraph-io/badger/v4"
)

// Files of the backend's own in the directory.
const (
	guardFile   = "GUARD"
	openingFile = "OPENING"
	lockFile    = "LOCK" // as Badger's: the number of the owning process, for people
	tempSuffix  = ".new"
)

// Files of Badger's.
const (
	manifestFile = bdg.ManifestFilename
	registryFile = bdg.KeyRegistryFileName
	discardFile  = "DISCARD"
	tableExt     = ".sst"
	walExt       = ".mem"
	valueLogExt  = ".vlog"
)

const (
	filePerm = 0o600
	dirPerm  = 0o700
)

// maxOpenings is how often in a row the process may end while a directory is opened before that counts as damage. It is
// more than one because a process that is killed while it opens healthy files should not have to restore them, and no
// known damage ends the process.
const maxOpenings = 8

var guardMagic = [8]byte{'T', 'R', 'G', 'U', 'A', 'R', 'D', formatVersion}

// digest is the length and hash of a file that only grows.
type digest struct {
	size int64
	sum  [sha256.Size]byte
}

// guard is what is known of the files for certain: see the package's documentation.
type guard struct {
	// clean says that the database was closed, and files is valid.
	clean bool
	// last is the number of the newest link.
	last uint64
	// inTables is a link that is in tables named by the manifest, with all before it.
	inTables uint64
	// memTableBytes is the size of the memtables that wrote the logs.
	memTableBytes int64
	// valueLog is the highest number of a file of the value log.
	valueLog uint64
	manifest digest
	registry digest
	// files is the hash of names and sizes of all data files.
	files [sha256.Size]byte
}

func (g *guard) encode() []byte {
	b := append([]byte(nil), guardMagic[:]...)
	clean := byte(0)
	if g.clean {
		clean = 1
	}
	b = append(b, clean)
	for _, n := range []uint64{
		g.last, g.inTables, uint64(g.memTableBytes), g.valueLog, uint64(g.manifest.size), uint64(g.registry.size),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, g.manifest.sum[:]...)
	b = append(b, g.registry.sum[:]...)
	b = append(b, g.files[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeGuard(b []byte) (*guard, error) {
	const size = len(guardMagic) + 1 + 6*8 + 3*sha256.Size + crc32.Size
	if len(b) != size {
		return nil, fmt.Errorf("%s has %d bytes, not %d", guardFile, len(b), size)
	}
	body := b[:size-crc32.Size]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[len(body):]) {
		return nil, fmt.Errorf("the checksum of %s is wrong", guardFile)
	}
	if !bytes.Equal(b[:len(guardMagic)], guardMagic[:]) {
		return nil, fmt.Errorf("%s is of another version than %d", guardFile, formatVersion)
	}
	g := &guard{clean: b[8] == 1}
	b = body[9:]
	next := func() uint64 {
		n := binary.BigEndian.Uint64(b)
		b = b[8:]
		return n
	}
	g.last, g.inTables, g.memTableBytes = next(), next(), int64(next())
	g.valueLog, g.manifest.size, g.registry.size = next(), int64(next()), int64(next())
	for _, sum := range []*[sha256.Size]byte{&g.manifest.sum, &g.registry.sum, &g.files} {
		b = b[copy(sum[:], b):]
	}
	return g, nil
}

// opening is the content of the marker that exists while Badger opens.
type opening struct {
	attempt int
	// fresh says that the directory held nothing before.
	fresh bool
}

func (o opening) encode() []byte {
	return fmt.Appendf(nil, "attempt %d fresh %t\n", o.attempt, o.fresh)
}

func decodeOpening(b []byte) (o opening, err error) {
	if _, err := fmt.Sscanf(string(b), "attempt %d fresh %t\n", &o.attempt, &o.fresh); err != nil {
		return o, fmt.Errorf("%s cannot be read: %w", openingFile, err)
	}
	return o, nil
}

// directory is the directory of a task, whose files are named relative to it and cannot lead out of it.
type directory struct {
	root *os.Root
	path string
	// self is open for syncing and locking.
	self *os.File
	// noSync leaves out all syncs.
	noSync bool
}

// read returns the content of a file, or nil when there is none.
func (d *directory) read(name string) ([]byte, error) {
	b, err := d.root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// replace gives a file a new content, all or nothing.
func (d *directory) replace(name string, content []byte) error {
	temp := name + tempSuffix
	f, err := d.root.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, filePerm)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && !d.noSync {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.root.Rename(temp, name); err != nil {
		return err
	}
	return d.sync()
}

// remove removes a file, if it is there.
func (d *directory) remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.sync()
}

func (d *directory) sync() error {
	if d.noSync {
		return nil
	}
	return d.self.Sync()
}

// digest hashes the first limit bytes of a file, or all of it when limit is negative. A file that is shorter, or not
// there, has a smaller size in its digest.
func (d *directory) digest(name string, limit int64) (g digest, err error) {
	f, err := d.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return g, nil
	}
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var r io.Reader = f
	if limit >= 0 {
		r = io.LimitReader(f, limit)
	}
	h := sha256.New()
	if g.size, err = io.Copy(h, r); err != nil {
		return g, err
	}
	h.Sum(g.sum[:0])
	return g, nil
}

// inventory is what a listing of the directory tells.
type inventory struct {
	// data lists Badger's files of rows with their sizes.
	data map[string]int64
	// allocated is what the files take on disk, in bytes.
	allocated int64
	// valueLog is the highest number of a file of the value log that is not empty.
	valueLog uint64
}

// list reads the directory. On the way it takes from everybody but the owner what Badger permitted.
func (d *directory) list() (inv inventory, err error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return inv, err
	}
	inv.data = make(map[string]int64, len(entries))
	for _, e := range entries {
		name := e.Name()
		info, err := d.root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // Badger removes files in the background
		}
		if err != nil {
			return inv, err
		}
		if !info.Mode().IsRegular() {
			continue
		}
		if info.Mode().Perm()&^filePerm != 0 {
			if err := d.root.Chmod(name, filePerm); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return inv, err
			}
		}
		inv.allocated += allocated(info)
		if !isData(name) {
			continue
		}
		inv.data[name] = info.Size()
		if stem, ok := strings.CutSuffix(name, valueLogExt); ok && info.Size() > 0 {
			number, err := strconv.ParseUint(stem, 10, 32)
			if err != nil {
				return inv, corrupt("%s is not a file of the value log", strconv.Quote(name))
			}
			inv.valueLog = max(inv.valueLog, number)
		}
	}
	return inv, nil
}

// isData tells whether a file is one of Badger's without which rows would be missing.
func isData(name string) bool {
	switch path.Ext(name) {
	case tableExt, walExt, valueLogExt:
		return true
	}
	return name == manifestFile || name == registryFile
}

// sum hashes names and sizes of the data files.
func (inv *inventory) sum() (sum [sha256.Size]byte) {
	names := make([]string, 0, len(inv.data))
	for name := range inv.data {
		names = append(names, name)
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		fmt.Fprintf(h, "%s %d\n", name, inv.data[name])
	}
	h.Sum(sum[:0])
	return sum
}
