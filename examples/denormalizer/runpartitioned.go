package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/processor"
)

// runPartitioned is run for the partitioned form: the same newsroom, written into two topics.
func runPartitioned(ctx context.Context, o options, out *console, log *zap.Logger) (err error) {
	brokers, closeBroker, err := broker(o, out, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeBroker()) }()
	stateDir, removeState, err := o.stateDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeState()) }()
	if err := processor.EnsureTopics(ctx, brokers, nil, partitionedTopics()...); err != nil {
		return fmt.Errorf("brokers %v: %w", brokers, err)
	}

	progress := newProgress()
	app, err := newPartitioned(processor.Config{
		Brokers: brokers, StateDir: stateDir, SessionTimeout: o.session, LeaveOnStop: true,
		OnDecodeError: processor.DeadLetter(DeadLetters), OnProcessError: processor.DeadLetter(DeadLetters),
		Log: log, Events: progress.events(out),
	})
	if err != nil {
		return err
	}
	v, err := openView(ctx, brokers, DenormalizedPartitioned.Name(), log)
	if err != nil {
		return err
	}
	defer v.close()
	out.printf("state     %s\n", describeState(app.Config().StateDir, o))
	if !o.member {
		out.printf("\nMembers share the partitions. Start a second one in another terminal by\n\n  %s\n\n",
			memberLine(brokers, o))
	}

	p := start(ctx)
	p.goes("view", v.follow)
	p.goes("application", app.Run)
	p.goes("progress", func(ctx context.Context) error { return progress.printPartitioned(ctx, out, v) })
	if !o.member {
		p.goes("load", func(ctx context.Context) error {
			if err := demoPartitioned(ctx, o, out, brokers, progress, v); err != nil || !o.once {
				return err
			}
			p.end()
			return nil
		})
	}
	return p.wait()
}

// printPartitioned prints a line a second while something happens.
func (p *progress) printPartitioned(ctx context.Context, out *console, v *view) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		written, _ := v.repeated()
		line := fmt.Sprintf("articles and assets +%d  processed %d  lag %d  documents written %d  articles out %d",
			p.appended.Load(), p.processed.Load(), p.lag.Load(), written, len(v.all()))
		if line != last {
			out.printf("%s %s\n", p.clock(), line)
		}
		last = line
	}
}

// demoPartitioned writes what the newsroom does into the two topics, waits until everything is processed, and checks
// the result.
func demoPartitioned(ctx context.Context, o options, out *console, brokers []string, p *progress, v *view) error {
	a, err := readLog(ctx, brokers, ArticlesTopic.Name(), AssetsTopic.Name())
	if err != nil {
		return err
	}
	if err := feedPartitioned(ctx, o, brokers, newNewsroom(o.seed, a.assets), p); err != nil {
		return err
	}
	out.printf("%s the newsroom has closed; waiting for the rest\n", p.clock())
	begin := time.Now()
	for {
		if a, err = readLog(ctx, brokers, ArticlesTopic.Name(), AssetsTopic.Name()); err != nil {
			return err
		}
		want, err := a.flatDocuments()
		if err != nil {
			return err
		}
		wrong := v.differences(want)
		if len(wrong) > 0 && time.Since(begin) < settleTimeout {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(200 * time.Millisecond):
				continue
			}
		}
		written, _ := v.repeated()
		out.always("\narticles and assets: %d records of %d; %d documents written\n", a.records, len(a.assets), written)
		out.always("check: computed again from both topics, %d of %d published articles are equal to the view's\n",
			len(want)-min(len(want), len(wrong)), len(want))
		if len(wrong) > 0 {
			return fmt.Errorf("%w:\n  %s", errDiffers, strings.Join(wrong[:min(len(wrong), 10)], "\n  "))
		}
		return nil
	}
}

// feedPartitioned writes each story into the topic of its asset, at the rate that was asked for. The old versions that
// the newsroom repeats stay out: what is last in a topic is newest there.
func feedPartitioned(ctx context.Context, o options, brokers []string, n *newsroom, p *progress) error {
	news, err := openLog(brokers)
	if err != nil {
		return err
	}
	defer news.close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	begin := time.Now()
	for done := 0; o.events == 0 || done < o.events; {
		due := int(time.Since(begin).Seconds()*float64(o.rate)) + 1
		if o.events > 0 {
			due = min(due, o.events)
		}
		var batch []*kgo.Record
		for ; done < due; done++ {
			s := n.story()
			if s.repeat {
				continue
			}
			r, err := s.record()
			if err != nil {
				return err
			}
			r.Topic = topicOf(s.asset.ID).Name()
			batch = append(batch, r)
		}
		if err := news.cl.ProduceSync(ctx, batch...).FirstErr(); err != nil {
			return fmt.Errorf("articles and assets: append: %w", err)
		}
		p.appended.Add(int64(len(batch)))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// flatDocuments is documents for the partitioned form.
func (a *archive) flatDocuments() (map[string][]byte, error) {
	return a.render(func(n Newest) (Document, error) {
		return flatDocument(n.ID, n.Asset, func(id string) (Asset, bool) {
			row, ok := a.assets[id]
			return row.Asset, ok && !row.Deleted
		}), nil
	})
}
