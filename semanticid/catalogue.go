package semanticid

import (
	"fmt"
	"slices"
	"strings"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// DefaultMaxItems is how many items a catalogue takes unless it is told otherwise.
const DefaultMaxItems = 2_000_000

// Catalogue is the newest state of the items topic. What is wrong with an item is
// counted and never ends a reader; the item then stands there with what was right.
type Catalogue struct {
	MaxItems int // items beyond it are refused; 0: DefaultMaxItems

	Refused int    // items or embeddings that were not taken
	Why     string // of the last one

	order []string // as items first came
	items map[string]*onerecv1.Item
	width int
}

// Put takes a record's item; the newest of an id counts. The catalogue keeps it.
func (c *Catalogue) Put(item *onerecv1.Item) {
	if c.items == nil {
		c.items = make(map[string]*onerecv1.Item)
	}
	id := item.ItemId
	if id == "" || len(id) > schemas.MaxIDBytes {
		c.refuse("item %.40q: the id has %d bytes, allowed are 1 to %d", id, len(id), schemas.MaxIDBytes)
		return
	}
	if len(item.Embedding) > 0 {
		if why := faultOf(item.Embedding, c.width); why != "" {
			c.refuse("item %q: the embedding %s", id, why)
			item.Embedding = nil
		}
	}
	if c.items[id] == nil {
		limit := c.MaxItems
		if limit == 0 {
			limit = DefaultMaxItems
		}
		if len(c.items) >= limit {
			c.refuse("item %q: the catalogue holds %d items, as many as are allowed", id, limit)
			return
		}
		if len(c.order) >= 2*limit { // of items that came and went
			live := make([]string, 0, len(c.items))
			c.All(func(item *onerecv1.Item) bool {
				live = append(live, item.ItemId)
				return true
			})
			c.order = live
		}
		c.order = append(c.order, id)
	}
	c.items[id] = item
	if c.width == 0 {
		c.width = len(item.Embedding)
	}
}

// Remove takes an item out.
func (c *Catalogue) Remove(id string) { delete(c.items, id) }

func (c *Catalogue) refuse(format string, args ...any) {
	c.Refused++
	c.Why = fmt.Sprintf(format, args...)
}

// Len is how many items there are.
func (c *Catalogue) Len() int { return len(c.items) }

// All yields the items in the order in which they first came.
func (c *Catalogue) All(yield func(*onerecv1.Item) bool) {
	seen := make(map[string]bool) // an item that went and came again stands there twice
	for _, id := range c.order {
		if item := c.items[id]; item != nil && !seen[id] {
			seen[id] = true
			if !yield(item) {
				return
			}
		}
	}
}

// Item returns an item, nil if the catalogue has none of this id.
func (c *Catalogue) Item(id string) *onerecv1.Item { return c.items[id] }

// Embeddings returns the items that have embeddings.
func (c *Catalogue) Embeddings() *Embeddings {
	e := &Embeddings{known: make(map[string]bool)}
	c.All(func(item *onerecv1.Item) bool {
		if len(item.Embedding) > 0 {
			e.append(item.ItemId, item.Embedding)
		}
		return true
	})
	return e
}

// Attributes returns an item's attributes.
func (c *Catalogue) Attributes(id string) []string {
	if item := c.items[id]; item != nil {
		return slices.DeleteFunc(slices.Clone(item.Attributes), func(a string) bool { return strings.TrimSpace(a) == "" })
	}
	return nil
}
