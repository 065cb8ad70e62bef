package publisher

import (
	"onerec/internal/buckets"
	"onerec/internal/faultybucket"
)

type (
	outcome = faultybucket.Outcome
	object  = faultybucket.Object
)

const (
	works    = faultybucket.Works
	fails    = faultybucket.Fails
	torn     = faultybucket.Torn
	tornAway = faultybucket.TornAway
	lost     = faultybucket.Lost
	crashes  = faultybucket.Crashes
	crashed  = faultybucket.Crashed
)

// faulty is a bucket whose changes can fail.
type faulty struct{ *faultybucket.Bucket }

func newFaulty() *faulty { return &faulty{faultybucket.New()} }

// open returns a store as a new process would.
func (f *faulty) open(o Options) *Store {
	return &Store{&buckets.Bucket{Bucket: f.Open(), URL: "faulty://"}, o}
}
