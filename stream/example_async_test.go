package stream_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

var (
	Lookups = state.Pending("lookups", serde.String, serde.String)
	Mails   = state.Pending("mails", serde.String, serde.String)
	Sent    = state.Effects("mails-sent")
	Held    = state.Pending("held", serde.String, serde.String)
)

func ExampleAsync() {
	tries := 0
	lookUp := func(_ context.Context, id string, _, city string) (string, error) {
		if tries++; tries == 1 {
			fmt.Println("the service is down")
			return "", errors.New("unavailable")
		}
		return city + " is fine", nil // a real one sends id along, as its idempotency key
	}
	d, in, out := drive(func(b *processor.Builder) {
		stream.To(stream.Async(stream.From(b, Words), Lookups, lookUp, processor.CallOptions{}), Out)
	})
	in.Pipe("ann", "Rome")
	in.Pipe("ann", "Oslo") // waits behind Rome
	in.Pipe("bob", "Bern") // does not
	show(out)
	d.Crash()                       // what waits is kept
	d.AdvanceWallClock(time.Second) // until Rome is tried again
	show(out)
	// Output:
	// the service is down
	// bob=Bern is fine
	// ann=Rome is fine
	// ann=Oslo is fine
}

func ExampleGateway() {
	mail := func(_ context.Context, id string, to, text string) error {
		fmt.Printf("mail %s to %s: %s\n", id, to, text)
		return nil
	}
	number := func(_, text string) string { return text[:2] } // by what it says, not by where it lies
	_, in, out := drive(func(b *processor.Builder) {
		sent := stream.Gateway(stream.From(b, Words), Mails, Sent, number, mail, processor.CallOptions{})
		stream.To(sent, Out)
	})
	in.Pipe("ann", "#1 paid")
	in.Pipe("ann", "#2 sent")
	in.Pipe("ann", "#1 paid") // read again: the mail is known to be sent
	show(out)
	// Output:
	// mail #1 to ann: #1 paid
	// mail #2 to ann: #2 sent
	// ann=#1 paid
	// ann=#2 sent
	// ann=#1 paid
}

func ExampleDelay() {
	d, in, out := drive(func(b *processor.Builder) {
		stream.To(stream.Delay(stream.From(b, Words), Held, time.Minute), Out)
	})
	in.Pipe("a", "new")
	in.PipeAt("b", "old", d.Now().Add(-time.Hour)) // its minute is over
	show(out)
	d.AdvanceWallClock(59 * time.Second)
	fmt.Println("59 s")
	show(out)
	d.AdvanceWallClock(time.Second)
	fmt.Println("60 s")
	show(out)
	// Output:
	// b=old
	// 59 s
	// 60 s
	// a=new
}
