package semanticid

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// ErrTooManyWithdrawn says that an item is withdrawn for which a [Withdrawn] has no room.
var ErrTooManyWithdrawn = errors.New("an item is withdrawn, and may be recommended all the same, because there are too many; give records without a value to those that no checkpoint knows any more")

// Withdrawn is the set of items that must not be recommended, as the items topic has it.
type Withdrawn struct {
	MaxItems int // items at most; 0: DefaultMaxItems

	items map[string]bool
}

// Read takes the next record of the items topic and reports whether the set is another. An error leaves it as it is:
// the value is no Item, or [ErrTooManyWithdrawn].
func (w *Withdrawn) Read(key, value []byte) (changed bool, err error) {
	item := &onerecv1.Item{ItemId: string(key)} // without a value nothing is known of it
	if value != nil {
		item.Reset()
		if err := proto.Unmarshal(value, item); err != nil {
			return false, fmt.Errorf("no Item: %w", err)
		}
	}
	limit := w.MaxItems
	if limit == 0 {
		limit = DefaultMaxItems
	}
	switch id := item.ItemId; {
	case item.Withdrawn == w.items[id]:
		return false, nil
	case !item.Withdrawn:
		delete(w.items, id)
	case id == "" || len(id) > schemas.MaxIDBytes: // nothing has such an id
		return false, nil
	case len(w.items) >= limit:
		return false, fmt.Errorf("item %q, after %d others: %w", id, len(w.items), ErrTooManyWithdrawn)
	default:
		if w.items == nil {
			w.items = make(map[string]bool)
		}
		w.items[id] = true
	}
	return true, nil
}

// Has reports whether an item must not be recommended.
func (w *Withdrawn) Has(item string) bool { return w.items[item] }

// Len is how many items there are.
func (w *Withdrawn) Len() int { return len(w.items) }

// In returns the indexes of those that a codebook has.
func (w *Withdrawn) In(cb *Codebook) map[int32]bool {
	in := make(map[int32]bool)
	for item := range w.items {
		if i, ok := cb.Index(item); ok {
			in[i] = true
		}
	}
	return in
}
