// Package badger is the state.Backend of production: one Badger database per task directory.
//
// # Layout
//
// A row is stored under two bytes of store number and its key; the store number 0 holds what the backend keeps for
// itself: the names of stores, their changelog positions, and the links described below. Store numbers are even, so
// that the key after the last one of a store is never in use, which is where a backward scan starts.
//
// # What Badger does not notice
//
// Badger 4.9 opens without complaint, with data missing, when its MANIFEST was cut or removed, when a write-ahead log
// was damaged, and crashes the process from a goroutine of its own when a table was damaged. State that silently lacks
// rows gives wrong results for ever, while damage that is noticed costs only a restore from the changelog. Hence, next
// to Badger's files:
//
//   - Links. Every transaction carries one row of a gapless series of numbers. Each write-ahead log, and each table
//     made from one, holds at least one number that is nowhere else, so a lost one leaves a gap, or a series that ends
//     early.
//   - GUARD, a small file that is replaced and synced after each write: the number that the series has reached, the
//     number up to which links are in tables, and length and hash of the MANIFEST and the key registry, both of which
//     only ever grow. (Badger rewrites the MANIFEST after 10000 removed tables; a kill before the next write then costs
//     a restore.) Tables are named by the MANIFEST, so what is in tables is safe when the MANIFEST starts with the
//     recorded bytes; what is younger is safe when the series is complete. A clean Close also records the names and
//     sizes of all files.
//   - Tables are verified, block by block, in the opening goroutine, where damage is an error.
//   - OPENING exists while Badger opens. If it is still there at the next start, then the process was killed there, or
//     crashed; the third time in a row the directory counts as damaged. So no damage, known or not, makes a crash loop.
//   - Before each write the free space of the file system is compared with a floor, because Badger writes through
//     memory maps: a full disk is a SIGBUS that ends the process.
//
// Values over 1 MB go to Badger's value log. Their checksums are verified when they are read.
//
// # Order of writes
//
// Badger takes 15 % of a memtable in one transaction, so that a Write may need several. They are committed one after
// the other, each synced, rows first and the positions in the last one. Badger replays its logs in order of commit and
// up to the first entry that is not whole; a crash therefore leaves a prefix of the transactions, and a position is
// there only with all rows before it.
//
// Readers use a snapshot that is replaced when a Write has ended. They never wait for a commit, and see each Write as
// a whole.
package badger
