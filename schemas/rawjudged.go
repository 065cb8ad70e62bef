package schemas

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Tags of what RawJudged finds, by message: the number over the kind.
const (
	tagJudgedSession = 1<<3 | uint64(protowire.BytesType)
	tagJudgedVerdict = 2<<3 | uint64(protowire.BytesType)

	tagSessionUser  = fieldUserID<<3 | uint64(protowire.BytesType)
	tagSessionStart = 3<<3 | uint64(protowire.VarintType)
	tagSessionEnd   = 4<<3 | uint64(protowire.VarintType)

	tagVerdictGood    = 1<<3 | uint64(protowire.VarintType)
	tagVerdictFailed  = 2<<3 | uint64(protowire.BytesType)
	tagVerdictVersion = 3<<3 | uint64(protowire.BytesType)
)

var errNoSession = errors.New("there is no session in it")

// RawJudged is what is counted and sorted by of an encoded JudgedSession, found but not
// copied: its views and its history, most of the bytes, are passed over.
type RawJudged struct {
	UserID         []byte // shares memory with what was scanned, as all bytes here
	StartMs, EndMs int64  // ms since epoch
	Good           bool
	FailedRules    [][]byte
	RulesVersion   []byte
}

// Scan finds the fields of an encoded JudgedSession. Bytes that are no message or hold no
// session are an error.
func (j *RawJudged) Scan(b []byte) error {
	*j = RawJudged{FailedRules: j.FailedRules[:0]}
	found := false
	err := EachField(b, func(num protowire.Number, kind protowire.Type, value []byte) error {
		switch protowire.EncodeTag(num, kind) {
		case tagJudgedSession:
			found = true
			return EachField(value, j.session)
		case tagJudgedVerdict:
			return EachField(value, j.verdict)
		}
		return nil
	})
	if err == nil && !found {
		err = errNoSession
	}
	if err != nil {
		return fmt.Errorf("decode judged session: %w", err)
	}
	return nil
}

func (j *RawJudged) session(num protowire.Number, kind protowire.Type, value []byte) error {
	switch protowire.EncodeTag(num, kind) {
	case tagSessionUser:
		j.UserID = value
	case tagSessionStart:
		j.StartMs = int64(Varint(value))
	case tagSessionEnd:
		j.EndMs = int64(Varint(value))
	}
	return nil
}

func (j *RawJudged) verdict(num protowire.Number, kind protowire.Type, value []byte) error {
	switch protowire.EncodeTag(num, kind) {
	case tagVerdictGood:
		j.Good = Varint(value) != 0
	case tagVerdictFailed:
		j.FailedRules = append(j.FailedRules, value)
	case tagVerdictVersion:
		j.RulesVersion = value
	}
	return nil
}
