package snapshots

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"onerec/internal/limited"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/ipc"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// TokenRow is a training row as tokens: a user's history, then a session.
type TokenRow struct {
	SessionID  string
	UserBucket int32     // of UserBuckets, by hash: rows of a user have the same
	HeldOut    bool      // of a user who is never trained on
	Ended      time.Time // of the session, to the millisecond
	Tokens     []int32
	// Weights are of each token in the loss, as predicted from those before it; 0: it is not predicted.
	Weights []float32
	// SessionAt is where the session begins among the tokens.
	SessionAt int32
}

// UserBuckets is the number of buckets that users are hashed into.
const UserBuckets = 4096

var tokenSchema = arrow.NewSchema([]arrow.Field{
	{Name: "session_id", Type: arrow.BinaryTypes.String},
	{Name: "user_bucket", Type: arrow.PrimitiveTypes.Int32},
	{Name: "held_out", Type: arrow.FixedWidthTypes.Boolean},
	{Name: "ended", Type: &arrow.TimestampType{Unit: arrow.Millisecond, TimeZone: "UTC"}},
	{Name: "tokens", Type: arrow.ListOfNonNullable(arrow.PrimitiveTypes.Int32)},
	{Name: "weights", Type: arrow.ListOfNonNullable(arrow.PrimitiveTypes.Float32)},
	{Name: "session_at", Type: arrow.PrimitiveTypes.Int32},
}, nil)

// maxTokens bounds the rows of a batch by their tokens.
const maxTokens = 1 << 20

// TokenWriter writes rows of tokens as an Arrow IPC file, which readers can map into memory.
type TokenWriter struct {
	w      *ipc.FileWriter
	b      *array.RecordBuilder
	rows   int // of a batch
	tokens int // in the batch so far
}

// NewTokenWriter writes to w, with so many rows in a record batch. What the rows mean goes into the schema's
// metadata.
func NewTokenWriter(w io.WriteSeeker, metadata map[string]string, rows int) (*TokenWriter, error) {
	md := arrow.MetadataFrom(metadata)
	schema := arrow.NewSchema(tokenSchema.Fields(), &md)
	fw, err := ipc.NewFileWriter(w, ipc.WithSchema(schema))
	if err != nil {
		return nil, fmt.Errorf("write tokens: %w", err)
	}
	return &TokenWriter{w: fw, b: array.NewRecordBuilder(memory.DefaultAllocator, schema), rows: rows}, nil
}

// Write adds a row.
func (t *TokenWriter) Write(r TokenRow) error {
	if len(r.Tokens) != len(r.Weights) || r.SessionAt < 0 || int(r.SessionAt) > len(r.Tokens) {
		return fmt.Errorf("write tokens: session %s has %d tokens, %d weights and begins at %d", r.SessionID, len(r.Tokens), len(r.Weights), r.SessionAt)
	}
	t.b.Field(0).(*array.StringBuilder).Append(r.SessionID)
	t.b.Field(1).(*array.Int32Builder).Append(r.UserBucket)
	t.b.Field(2).(*array.BooleanBuilder).Append(r.HeldOut)
	t.b.Field(3).(*array.TimestampBuilder).Append(arrow.Timestamp(r.Ended.UnixMilli()))
	tokens, weights := t.b.Field(4).(*array.ListBuilder), t.b.Field(5).(*array.ListBuilder)
	tokens.Append(true)
	tokens.ValueBuilder().(*array.Int32Builder).AppendValues(r.Tokens, nil)
	weights.Append(true)
	weights.ValueBuilder().(*array.Float32Builder).AppendValues(r.Weights, nil)
	t.b.Field(6).(*array.Int32Builder).Append(r.SessionAt)
	if t.tokens += len(r.Tokens); t.b.Field(0).Len() >= t.rows || t.tokens >= maxTokens {
		return t.flush()
	}
	return nil
}

func (t *TokenWriter) flush() error {
	batch := t.b.NewRecord()
	defer batch.Release()
	t.tokens = 0
	if batch.NumRows() == 0 {
		return nil
	}
	if err := t.w.Write(batch); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	return nil
}

// Close writes what is left and the end of the file. It does not close what is beneath.
func (t *TokenWriter) Close() error {
	defer t.b.Release()
	if err := errors.Join(t.flush(), t.w.Close()); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	return nil
}

// ReadTokens calls fn with the rows of an Arrow IPC file, and returns what it says of itself, or fn's first error.
// A batch is read at a time, by one copy, of which a row's slices are parts: fn must not keep them. The reader's
// size is that of what it takes from a file, which may be damaged, for a batch at most.
func ReadTokens(r ipc.ReadAtSeeker, fn func(TokenRow) error) (metadata map[string]string, err error) {
	size, err := r.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	var failed error
	defer func() { // Arrow panics on some malformed files
		if p := recover(); p != nil {
			err = fmt.Errorf("read tokens: malformed Arrow: %v", p)
		}
	}()
	if err := limited.CheckArrow(r, size); err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	f, err := ipc.NewFileReader(r, ipc.WithAllocator(limited.Allocator{Allocator: memory.DefaultAllocator, Limit: int(size) + 4096}))
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	defer f.Close()
	if !slices.EqualFunc(f.Schema().Fields(), tokenSchema.Fields(), func(a, b arrow.Field) bool {
		return a.Name == b.Name && arrow.TypeEqual(a.Type, b.Type)
	}) {
		return nil, fmt.Errorf("read tokens: the file has the columns %v, want %v", f.Schema().Fields(), tokenSchema.Fields())
	}
	metadata = f.Schema().Metadata().ToMap()
	for i := range f.NumRecords() {
		batch, err := f.Record(i)
		if err != nil {
			return metadata, fmt.Errorf("read tokens: batch %d: %w", i, err)
		}
		if err := eachRow(batch, func(row TokenRow) error {
			failed = fn(row)
			return failed
		}); failed != nil {
			return metadata, failed
		} else if err != nil {
			return metadata, fmt.Errorf("read tokens: batch %d: %w", i, err)
		}
	}
	return metadata, nil
}

func eachRow(batch arrow.Record, fn func(TokenRow) error) error {
	for i := range int(batch.NumCols()) {
		if batch.Column(i).NullN() > 0 {
			return fmt.Errorf("column %s has nulls", batch.ColumnName(i))
		}
	}
	ids, buckets := batch.Column(0).(*array.String), batch.Column(1).(*array.Int32)
	held, ended := batch.Column(2).(*array.Boolean), batch.Column(3).(*array.Timestamp)
	tokens, weights := batch.Column(4).(*array.List), batch.Column(5).(*array.List)
	token, weight := tokens.ListValues().(*array.Int32).Int32Values(), weights.ListValues().(*array.Float32).Float32Values()
	at := batch.Column(6).(*array.Int32)
	for i := range int(batch.NumRows()) {
		t0, t1 := tokens.ValueOffsets(i)
		w0, w1 := weights.ValueOffsets(i)
		if t0 < 0 || t1 < t0 || t1 > int64(len(token)) || w0 < 0 || w1 > int64(len(weight)) || w1-w0 != t1-t0 || at.Value(i) < 0 || int64(at.Value(i)) > t1-t0 {
			return fmt.Errorf("row %d: its lists or its session lie outside", i)
		}
		row := TokenRow{
			SessionID: ids.Value(i), UserBucket: buckets.Value(i), HeldOut: held.Value(i), Ended: ms(int64(ended.Value(i))),
			Tokens: token[t0:t1], Weights: weight[w0:w1], SessionAt: at.Value(i),
		}
		if err := fn(row); err != nil {
			return err
		}
	}
	return nil
}
