package stream

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Transient reports whether an error says that brokers or the way to them fail for now,
// so that starting over later may help. Everything began is aborted then, nothing is
// lost. It does not hold for what an operator must mend (rights, topics that are
// missing, records that nobody may have written), nor for a producer that another
// process with the same instance id has fenced: the two would fence each other for ever.
func Transient(err error) bool {
	if err == nil || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.ProducerFenced) {
		return false
	}
	if kafka := (*kerr.Error)(nil); errors.As(err, &kafka) {
		switch kafka.Code {
		case kerr.UnknownMemberID.Code, kerr.IllegalGeneration.Code, kerr.TransactionAbortable.Code,
			// What a broker forgets in an unclean end, its producers must begin anew.
			kerr.OutOfOrderSequenceNumber.Code, kerr.UnknownProducerID.Code, kerr.InvalidProducerIDMapping.Code:
			return true
		case kerr.UnknownTopicOrPartition.Code: // retriable for a client; here it lasted
			return false
		}
		return kafka.Retriable
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kgo.ErrRecordTimeout) || errors.Is(err, kgo.ErrRecordRetries)
}
