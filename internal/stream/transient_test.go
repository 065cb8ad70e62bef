package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestTransient(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("sessions partition 0 offset 1 is no Session"), false},
		{&net.DNSError{Err: "no such host", Name: "kafka-1"}, true},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, true},
		{&kgo.ErrGroupSession{Err: &net.OpError{Op: "dial", Err: errors.New("connection refused")}}, true},
		{&kgo.ErrGroupSession{Err: kerr.GroupAuthorizationFailed}, false},
		{fmt.Errorf("end transaction: %w", context.DeadlineExceeded), true},
		{io.EOF, true},
		{kerr.CoordinatorNotAvailable, true},
		{kerr.TopicAuthorizationFailed, false},
		{kerr.TransactionalIDAuthorizationFailed, false},
		{kerr.UnknownTopicOrPartition, false},
		{fmt.Errorf("produce: %w", errors.Join(kerr.InvalidProducerEpoch, io.EOF)), false},
		{kerr.OutOfOrderSequenceNumber, true},
		{kgo.ErrRecordTimeout, true},
	} {
		if got := Transient(fmt.Errorf("sessionize: %w", tt.err)); tt.err != nil && got != tt.want {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
	if Transient(nil) {
		t.Error("no error is transient")
	}
}
