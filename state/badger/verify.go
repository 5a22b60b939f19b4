package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	bdg "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	bdgopts "github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"github.com/dgraph-io/ristretto/v2"
	"github.com/dgraph-io/ristretto/v2/z"
	"google.golang.org/protobuf/proto"
)

// maxVerifiers bounds how many tables are verified at a time.
const maxVerifiers = 3

// verifyFiles compares the directory with what the guard knows, and tables with their checksums, before Badger touches
// any. All its findings are damage, except errors of the operating system.
func (d *directory) verifyFiles(g *guard, opts Options) error {
	inv, err := d.list()
	if err != nil {
		return err
	}
	if g.clean && inv.sum() != g.files {
		return corrupt("%s: files were lost or changed in size since the last clean close", d.path)
	}
	for name, want := range map[string]digest{manifestFile: g.manifest, registryFile: g.registry} {
		got, err := d.digest(name, want.size)
		if err != nil {
			return err
		}
		if got != want {
			return corrupt("%s: %s was cut or changed", d.path, name)
		}
	}
	if inv.valueLog < g.valueLog {
		return corrupt("%s: the value log ends at file %d, not %d", d.path, inv.valueLog, g.valueLog)
	}
	return d.verifyTables(opts)
}

// tidyFiles removes what a killed process may leave and Badger cannot open: logs that were made or removed half, and
// statistics that are too short. None of them holds a row; if one did, links or values are missed later.
func (d *directory) tidyFiles() error {
	inv, err := d.list()
	if err != nil {
		return err
	}
	for name, size := range inv.data {
		if ext := filepath.Ext(name); size == 0 && (ext == walExt || ext == valueLogExt) {
			if err := d.root.Remove(name); err != nil {
				return err
			}
		}
	}
	const discardBytes = 1 << 20
	if info, err := d.root.Lstat(discardFile); err == nil && info.Size() < discardBytes {
		return d.root.Remove(discardFile)
	}
	return nil
}

// verifyTables reads every block of every table that the manifest names. Badger would do so too, but in goroutines that
// crash the process.
func (d *directory) verifyTables(opts Options) error {
	manifest, err := d.manifest()
	if err != nil {
		return corrupt("%s: %s: %w", d.path, manifestFile, redacted{err})
	}
	v := &verifier{dir: d, blockSize: bdg.DefaultOptions("").BlockSize}
	v.registry, err = bdg.OpenKeyRegistry(bdg.KeyRegistryOptions{
		Dir: d.path, ReadOnly: true, EncryptionKey: opts.EncryptionKey,
	})
	if err != nil {
		// The file is as it was, so that it is the key which is another.
		return fmt.Errorf("badger: open %s: %w", d.path, redacted{err})
	}
	if len(opts.EncryptionKey) > 0 {
		v.indexes, err = ristretto.NewCache(&ristretto.Config[uint64, *fb.TableIndex]{
			NumCounters: 1 << 12, MaxCost: indexCacheBytes, BufferItems: 64,
		})
		if err != nil {
			return err
		}
		defer v.indexes.Close()
	}

	type job struct {
		id   uint64
		info bdg.TableManifest
	}
	jobs := make(chan job)
	var (
		workers sync.WaitGroup
		mu      sync.Mutex
		failed  error
	)
	for range min(maxVerifiers, runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			for j := range jobs {
				if err := v.verify(j.id, j.info); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for id, info := range manifest.Tables {
		mu.Lock()
		stop := failed != nil
		mu.Unlock()
		if stop {
			break
		}
		jobs <- job{id, info}
	}
	close(jobs)
	workers.Wait()
	return failed
}

// manifest reads the list of tables.
func (d *directory) manifest() (m bdg.Manifest, err error) {
	f, err := d.root.Open(manifestFile)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	defer recovered(&err)
	m, _, err = bdg.ReplayManifestFile(f, 0, bdg.Options{})
	return m, err
}

// recovered turns a panic of Badger's over damaged bytes into an error. Its text may hold such bytes and is not kept.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("reading failed with a panic (%T)", p)
	}
}

// verifier checks tables.
type verifier struct {
	dir       *directory
	blockSize int
	registry  *bdg.KeyRegistry
	indexes   *ristretto.Cache[uint64, *fb.TableIndex] // nil without encryption
}

func (v *verifier) verify(id uint64, info bdg.TableManifest) error {
	name := table.IDToFilename(id)
	f, err := v.dir.root.Open(name)
	if err != nil {
		return tableError(name, err)
	}
	err = checkFooter(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return tableError(name, err)
	}
	// The footer is right, so that Badger's code can at worst panic.
	return tableError(name, v.checkBlocks(name, info))
}

func tableError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case environmental(err):
		return fmt.Errorf("badger: table %s: %w", name, redacted{err})
	default:
		return corrupt("table %s: %w", name, redacted{err})
	}
}

// checkFooter verifies the index of a table. From its end, a table is: length of checksum, checksum, length of index,
// index.
func checkFooter(f *os.File) (err error) {
	defer recovered(&err)
	info, err := f.Stat()
	if err != nil {
		return err
	}
	at := info.Size()
	read := func(n int64) ([]byte, error) {
		if n < 0 || n > at {
			return nil, io.ErrUnexpectedEOF
		}
		at -= n
		b := make([]byte, n)
		_, err := f.ReadAt(b, at)
		return b, err
	}
	readBlock := func() ([]byte, error) {
		size, err := read(4)
		if err != nil {
			return nil, err
		}
		n := int64(binary.BigEndian.Uint32(size))
		if n == 0 {
			return nil, errors.New("the footer is empty")
		}
		return read(n)
	}
	sum, err := readBlock()
	if err != nil {
		return fmt.Errorf("footer: %w", err)
	}
	var want pb.Checksum
	if err := proto.Unmarshal(sum, &want); err != nil {
		return fmt.Errorf("footer: %w", err)
	}
	index, err := readBlock()
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return y.VerifyChecksum(index, &want)
}

// checkBlocks lets Badger read all blocks of a table.
func (v *verifier) checkBlocks(name string, info bdg.TableManifest) (err error) {
	opts := table.Options{
		ReadOnly:    true,
		ChkMode:     bdgopts.OnTableRead,
		BlockSize:   v.blockSize,
		Compression: info.Compression,
		IndexCache:  v.indexes,
	}
	if opts.DataKey, err = v.registry.DataKey(info.KeyID); err != nil {
		return err
	}
	path := filepath.Join(v.dir.path, name)
	mf, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	ok := false
	defer func() {
		if !ok {
			// Badger unmaps on some errors and not on others, and a second time would unmap what is not ours. The file
			// is about to be removed anyway.
			_ = mf.Fd.Close()
		}
	}()
	defer recovered(&err)
	t, err := table.OpenTable(mf, opts)
	if err != nil {
		return err
	}
	ok = true
	return t.Close(-1)
}

// hasData tells whether the directory holds files of a database.
func (d *directory) hasData() (bool, error) {
	inv, err := d.list()
	return len(inv.data) > 0, err
}

// wipe removes the files of a database that was never finished opening.
func (d *directory) wipe() error {
	inv, err := d.list()
	if err != nil {
		return err
	}
	for name := range inv.data {
		if err := d.root.Remove(name); err != nil {
			return err
		}
	}
	for _, name := range []string{discardFile, manifestFile + "-REWRITE", "REWRITE-" + registryFile} {
		if err := d.root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return d.sync()
}

// logFiles tells whether there are write-ahead logs.
func (inv *inventory) logFiles() bool {
	for name := range inv.data {
		if strings.HasSuffix(name, walExt) {
			return true
		}
	}
	return false
}
