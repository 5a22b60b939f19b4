// Package processor is the core of Tailrace: it declares topics, builds topologies and runs them.
//
// A topology is built from typed operators, most of them in packages stream and table; this package has the ends (topics),
// what goes between (Record), and the Processor API for what no operator says. Build checks the whole and reports all
// mistakes at once:
//
//	topology, err := processor.Build(declare)
//
// An App runs a topology as a member of a consumer group, exactly once by default, with its state in changelog topics and
// cached on the local disk:
//
//	app, err := processor.New("inbox", topology, processor.Config{Brokers: brokers})
//	err = app.Run(ctx)
//
// A Task is what an App runs for each partition: a single-threaded machine that does no I/O of its own. Package
// processortest runs tasks without a broker, for tests.
package processor
