// Package holdout chooses the users that no model is ever trained on. Trainer and
// rewarder share the choice: a user who measures one model never taught the
// other.
package holdout

import "hash/fnv"

// Contains reports whether a user is among the given percent, by hash, that is
// never trained on.
func Contains(user string, percent int) bool {
	h := fnv.New64a()
	h.Write([]byte("holdout/" + user)) // a hash never fails
	return h.Sum64()%100 < uint64(percent)
}
