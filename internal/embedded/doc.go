// Package embedded runs a Kafka broker inside the process, for trying things out and for tests.
//
// The broker is franz-go's kfake: a single-threaded, in-process implementation of the Kafka protocol with groups,
// transactions and optional persistence. It listens on the loopback interface only, without authentication, and says
// at every start that it is not for production. Any Kafka client on the machine may connect to it, so a second
// process can join the first one; the Java AdminClient is the exception, because kfake leaves fields out that it
// needs.
//
// # Differences from Apache Kafka
//
// Some differences would hide a mistake until the program meets a real cluster, or would lose data that Kafka keeps.
// They are fenced off here:
//
//   - kfake compacts past the start of an open transaction, so an abort can lose the value that the compaction
//     removed. The compaction timer is set to a hundred years. With it the retention timer is off as well.
//   - kfake accepts topic configurations that Kafka does not know and values that it refuses. CreateTopics,
//     AlterConfigs and IncrementalAlterConfigs answer INVALID_CONFIG here, as Kafka does.
//   - kfake accepts records without a key in compacted topics. Produce answers INVALID_RECORD here, for the partition
//     that holds such a record; [Options.AllowNullKeys] turns this off.
//   - kfake creates no topic unasked, and neither does this package unless [Options.AutoCreate] is set, because the
//     engine's checks for missing topics mean nothing on a broker that invents them.
//
// Others cannot be mended from outside and have to be known:
//
//   - EndTxn of a fenced producer may be answered with INVALID_TXN_STATE where Kafka says PRODUCER_FENCED. A client
//     must treat both as the end of that producer.
//   - A restarted static member with a cooperative balancer raises the group's generation; on Kafka it stays.
//   - Transactions complete before EndTxn is answered, so CONCURRENT_TRANSACTIONS never occurs and a transaction costs
//     under a millisecond; on Kafka transactions back to back cost some 25 ms each.
//   - Compaction moves the log start offset. It runs only when a test calls Compact on [Broker.Cluster], which must not
//     happen while a transaction is open.
//   - There are no replicas, hence no truncation, no unclean election and no quotas. A topic's replication factor is
//     only a number.
//
// # Disk and memory
//
// Nothing is ever compacted or expired, so the data of a topic grows with what is produced to it, in memory or in the
// directory. Only DeleteRecords and DeleteTopics give space back, a whole segment at a time; segments are 8 MiB here,
// so that repartition topics, which are purged as they are read, stay small. With a directory the indices of all
// batches (some 100 bytes each) are still kept in memory, and the logs of groups and producers are rewritten when they
// reach 10 MiB.
//
// With [Options.Dir] every batch is synced before it is acknowledged, so what was acknowledged survives the death of
// the process and of the machine; [Options.NoSync] leaves the pages to the operating system, which still survives the
// death of the process alone. Topic ids, offsets, transactional ids and committed transactions are found again by the
// next start in the same directory; an open transaction is aborted by it. A lock lets one process at a time have the
// directory.
package embedded
