package serde_test

import (
	"errors"
	"fmt"
	"strings"

	"tailrace.dev/serde"
)

func ExampleSerde() {
	b, _ := serde.String.Append([]byte("key="), "alice")
	fmt.Printf("%s\n", b)
	v, _ := serde.String.Decode([]byte("alice"))
	fmt.Println(v)
	// Output:
	// key=alice
	// alice
}

// The bytes are those of Kafka's LongSerializer. The error of a decoder says what is wrong, and where.
func Example_int64() {
	b, _ := serde.Encode(serde.Int64, 258)
	fmt.Printf("% x\n", b)

	_, err := serde.Int64.Decode([]byte("258"))
	fmt.Println(err)
	fmt.Println(errors.Is(err, serde.ErrShort))
	// Output:
	// 00 00 00 00 00 00 01 02
	// serde: decode int64 at byte 3: too few bytes: want 8, have 3
	// true
}

// Stores iterate in the order of the bytes, so keys that are signed numbers are best written by an ordered kind.
func Example_orderedInt64() {
	for _, n := range []int64{-1, 0, 1} {
		plain, _ := serde.Encode(serde.Int64, n)
		ordered, _ := serde.Encode(serde.OrderedInt64, n)
		fmt.Printf("%2d  %x  %x\n", n, plain, ordered)
	}
	// Output:
	// -1  ffffffffffffffff  7fffffffffffffff
	//  0  0000000000000000  8000000000000000
	//  1  0000000000000001  8000000000000001
}

func ExampleJSON() {
	type Mail struct {
		From string   `json:"from"`
		To   []string `json:"to"`
	}
	mails := serde.JSON[Mail]()

	b, _ := serde.Encode(mails, Mail{From: "Alice <alice@example.com>", To: []string{"bob"}})
	fmt.Printf("%s\n", b)
	m, _ := mails.Decode(b)
	fmt.Println(m.To)

	_, err := mails.Decode([]byte(`{"from":"alice"} {}`))
	fmt.Println(errors.Is(err, serde.ErrTrailing))
	// Output:
	// {"from":"Alice <alice@example.com>","to":["bob"]}
	// [bob]
	// true
}

func ExamplePair() {
	byUserAndDay := serde.Tuple2(serde.String, serde.OrderedInt32)

	b, _ := serde.Encode(byUserAndDay, serde.Pair[string, int32]{First: "bob", Second: 7})
	fmt.Printf("% x\n", b)
	prefix, _ := byUserAndDay.AppendPrefix(nil, "bob") // of all keys of bob, but not of those of bobby
	fmt.Printf("% x\n", prefix)
	key, _ := byUserAndDay.Decode(b)
	fmt.Println(key.First, key.Second)
	// Output:
	// 62 6f 62 00 01 80 00 00 07
	// 62 6f 62 00 01
	// bob 7
}

func ExampleConvert() {
	type Country string // two letters, in upper case
	countries := serde.Convert(serde.String,
		func(s string) (Country, error) {
			if len(s) != 2 || s != strings.ToUpper(s) {
				return "", fmt.Errorf("%q is not a country code", s)
			}
			return Country(s), nil
		},
		func(c Country) (string, error) { return string(c), nil })

	c, err := countries.Decode([]byte("NZ"))
	fmt.Println(c, err)
	_, err = countries.Decode([]byte("nowhere"))
	fmt.Println(errors.Is(err, serde.ErrInvalid))
	// Output:
	// NZ <nil>
	// true
}

func ExampleWithLimit() {
	notes := serde.WithLimit(serde.String, 5)
	_, err := notes.Append(nil, "too long")
	fmt.Println(err)
	// Output:
	// serde: encode string: too large: want at most 5 bytes, have 8
}

func ExampleWithID() {
	type Account struct{ Balance int64 } // was called Wallet when the state was written
	accounts := serde.WithID(serde.JSON[Account](), "json:example.com/bank.Wallet")
	fmt.Println(serde.ID(accounts))
	// Output:
	// json:example.com/bank.Wallet
}
