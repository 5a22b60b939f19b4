//go:build kafka

package main

import (
	"testing"

	"tailrace.dev/internal/kafkatest"
)

// TestSecondMemberKafka is TestSecondMember on a real cluster. Its topics and its group keep their names and stay, so that
// each run goes on where the last one ended; the check covers all of them.
func TestSecondMemberKafka(t *testing.T) { secondMember(t, kafkatest.Brokers(t)) }
