package badger

import (
	"errors"
	"fmt"
	"time"

	bdg "github.com/dgraph-io/badger/v4"
	bdgopts "github.com/dgraph-io/badger/v4/options"
	"go.uber.org/zap"
)

const (
	defaultMemTableBytes = 8 << 20
	minMemTableBytes     = 8 << 20
	maxMemTableBytes     = 64 << 20

	defaultBlockCacheBytes = 8 << 20
	indexCacheBytes        = 16 << 20

	numMemTables     = 2
	defaultMinFree   = 256 << 20
	valueThreshold   = 1 << 20
	valueLogFileSize = 64 << 20

	// A row key in Badger is at most 65000 bytes, of which the store number takes two.
	maxKeyBytes = 65000 - storePrefixBytes
	// maxValueBytes is what fits into a file of the value log with its header and key.
	maxValueBytes = valueLogFileSize - 1<<17
)

// Options tune a backend. The zero value is ready for production.
type Options struct {
	// MemTableBytes is the size of the table in memory that takes new rows; there are up to three of it. It is kept
	// between 8 and 64 MB. The default is 8 MB: rows come here in large sorted writes already.
	MemTableBytes int64
	// Compress makes Badger compress tables with Snappy. Small JSON rows then take a third of the disk, and a Get that
	// goes to a table two to three times as long.
	Compress bool
	// BlockCacheBytes bounds the cache of blocks, which is there with Compress or EncryptionKey. The default is 8 MB,
	// the least is 1 MB.
	BlockCacheBytes int64
	// MinFreeBytes is how much disk space has to be left after a write, else Write returns state.ErrNoSpace. The default
	// is the larger of 256 MB and three memtables.
	MinFreeBytes uint64
	// EncryptionKey, of 16, 24 or 32 bytes, makes Badger encrypt its files with AES. The default is no encryption.
	EncryptionKey []byte
	// NoSync leaves the syncing of files to the operating system: writes survive the death of the process, but not of
	// the machine. For tests.
	NoSync bool
	// Logger gets Badger's messages, without keys and values of rows. The default is to drop them.
	Logger *zap.Logger
	// FreeBytes tells how many bytes of disk are free for dir. The default asks the file system.
	FreeBytes func(dir string) (uint64, error)

	// closeTimeout bounds how long Close waits for Badger, which retries without end when it cannot write.
	closeTimeout time.Duration
}

func (o Options) withDefaults() (Options, error) {
	if o.MemTableBytes == 0 {
		o.MemTableBytes = defaultMemTableBytes
	}
	o.MemTableBytes = min(max(o.MemTableBytes, minMemTableBytes), maxMemTableBytes)
	if o.BlockCacheBytes == 0 {
		o.BlockCacheBytes = defaultBlockCacheBytes
	}
	o.BlockCacheBytes = max(o.BlockCacheBytes, 1<<20)
	if o.MinFreeBytes == 0 {
		o.MinFreeBytes = max(defaultMinFree, uint64((numMemTables+1)*o.MemTableBytes))
	}
	switch len(o.EncryptionKey) {
	case 0, 16, 24, 32:
	default:
		return o, fmt.Errorf("badger: the encryption key has %d bytes; give 16, 24 or 32", len(o.EncryptionKey))
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.FreeBytes == nil {
		o.FreeBytes = freeBytes
	}
	if o.closeTimeout == 0 {
		o.closeTimeout = 30 * time.Second
	}
	return o, nil
}

// badger returns the options of the database in dir. The size of memtables is separate, because a log left by a crash
// has to be read with tables as large as those it was written with.
func (o Options) badger(dir string, memTableBytes int64) bdg.Options {
	b := bdg.DefaultOptions(dir)
	b.SyncWrites = !o.NoSync
	b.MemTableSize = memTableBytes
	b.NumMemtables = numMemTables
	b.NumCompactors = 2
	b.NumGoroutines = 1
	b.MetricsEnabled = false
	b.DetectConflicts = false
	b.ValueThreshold = valueThreshold
	b.ValueLogFileSize = valueLogFileSize
	// Damage in the value log is found when a value is read; all values before and behind it stay readable.
	b.VerifyValueChecksum = true
	// verifyTables has read every block before Badger opens a table. Badger's own modes either miss damage or answer it
	// with a nil pointer in a goroutine.
	b.ChecksumVerificationMode = bdgopts.NoVerification
	// Without compression blocks are read where they are mapped; a cache would keep them twice.
	b.Compression = bdgopts.None
	b.BlockCacheSize = 0
	if o.Compress {
		b.Compression = bdgopts.Snappy
		b.BlockCacheSize = o.BlockCacheBytes
	}
	if len(o.EncryptionKey) > 0 {
		b.EncryptionKey = o.EncryptionKey
		b.BlockCacheSize = o.BlockCacheBytes
		b.IndexCacheSize = indexCacheBytes
	}
	b.BypassLockGuard = ownLock
	b.Logger = &logger{o.Logger.Sugar()}
	return b
}

// checkSpace returns errSpace when fewer than need bytes would be left free.
func (o Options) checkSpace(dir string, need uint64) error {
	free, err := o.FreeBytes(dir)
	if err != nil {
		return fmt.Errorf("badger: free space of %s: %w", dir, err)
	}
	if free < need {
		return spaceError(fmt.Sprintf("%d MB free in %s, %d MB needed", free>>20, dir, need>>20))
	}
	return nil
}

var errClosed = errors.New("badger: backend is closed")
