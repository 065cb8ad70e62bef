package shred

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"

	"github.com/parquet-go/parquet-go"
)

// dictionary numbers the distinct values of a column, in the order in which they first came. Its hash table has open
// addressing, and entries that hold values of up to 8 bytes, as ids are, themselves: to find one is to read one place in memory.
// Values are looked up in blocks, so that the processor waits for many of those places at a time.
type dictionary struct {
	text    []byte
	offsets []uint32 // of values in text
	table   []entry  // a power of two, at most three quarters full
	seed    [2]uint64
	long    maphash.Seed

	waiting    int    // values that have no number yet
	bytes      []byte // of them
	ends       [block]uint32
	keys       [block]entry
	hashes     [block]uint64
	last       []byte // the last one that got a number
	lastNumber int32
	touched    uint32 // so that what is read ahead is read

	seen []uint32 // by number: the last page that bounds saw it in
	page uint32
}

// Values that wait are no more, and of no more bytes, than one value beyond these.
const (
	block      = 256
	blockBytes = 1 << 16
)

// entry is a value: what tells it from others, and its number.
type entry struct {
	key   uint64 // the bytes of a value of up to 8, else a hash
	size  uint32
	place uint32 // its number and 1; 0: none
}

func newDictionary() *dictionary {
	return &dictionary{offsets: []uint32{0}, table: make([]entry, 64), seed: [2]uint64{rand.Uint64(), rand.Uint64()}, long: maphash.MakeSeed()}
}

func (d *dictionary) len() int { return len(d.offsets) - 1 }

// values returns all values, one behind the other, and where each begins and ends.
func (d *dictionary) values() ([]byte, []uint32) { return d.text, d.offsets }

func (d *dictionary) value(i uint32) []byte { return d.text[d.offsets[i]:d.offsets[i+1]] }

// add takes a value, whose number comes behind the others' at once or later.
func (d *dictionary) add(numbers []int32, value []byte) []int32 {
	if d.waiting == 0 && string(value) == string(d.last) && d.len() > 0 { // as the one before, which many columns are always
		return append(numbers, d.lastNumber)
	}
	i := d.waiting
	d.bytes = append(d.bytes, value...)
	d.ends[i] = uint32(len(d.bytes))
	e := entry{key: d.key(value), size: uint32(len(value))}
	d.keys[i], d.hashes[i] = e, d.hash(e)
	if d.waiting++; d.waiting == block || len(d.bytes) > blockBytes {
		numbers = d.number(numbers)
	}
	return numbers
}

// number appends the numbers of the values that wait.
func (d *dictionary) number(numbers []int32) []int32 {
	n := d.waiting
	if n == 0 {
		return numbers
	}
	mask := uint64(len(d.table) - 1)
	for _, h := range d.hashes[:n] { // none of these reads waits for another
		d.touched |= d.table[h&mask].place
	}
	begin := uint32(0)
	for i, h := range d.hashes[:n] {
		end := d.ends[i]
		d.lastNumber = d.find(&d.keys[i], h, d.bytes[begin:end])
		numbers = append(numbers, d.lastNumber)
		begin = end
	}
	d.last = d.value(uint32(d.lastNumber))
	d.bytes, d.waiting = d.bytes[:0], 0
	return numbers
}

// find returns the number of a value, which is a new one if it has not been there.
func (d *dictionary) find(e *entry, hash uint64, value []byte) int32 {
	mask := uint64(len(d.table) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		f := &d.table[i]
		if f.key == e.key && f.size == e.size && f.place != 0 && (e.size <= 8 || string(d.value(f.place-1)) == string(value)) {
			return int32(f.place - 1)
		}
		if f.place == 0 {
			return d.insert(*e, value)
		}
	}
}

// key tells values of up to 8 bytes with their sizes from each other; others have a hash.
func (d *dictionary) key(v []byte) uint64 {
	switch n := len(v); {
	case n > 8:
		return maphash.Bytes(d.long, v)
	case n >= 4: // the first and the last four, which overlap
		return uint64(binary.LittleEndian.Uint32(v)) | uint64(binary.LittleEndian.Uint32(v[n-4:]))<<32
	case n > 0:
		return uint64(v[0]) | uint64(v[n/2])<<8 | uint64(v[n-1])<<16
	default:
		return 0
	}
}

// hash mixes a key with secrets of this dictionary, so that nobody can choose names that collide.
func (d *dictionary) hash(e entry) uint64 {
	high, low := bits.Mul64(e.key^d.seed[0], d.seed[1]^uint64(e.size))
	return high ^ low
}

func (d *dictionary) insert(e entry, value []byte) int32 {
	d.text = append(d.text, value...)
	d.offsets = append(d.offsets, uint32(len(d.text)))
	e.place = uint32(d.len())
	if 4*d.len() > 3*len(d.table) {
		old := d.table
		d.table = make([]entry, 2*len(old))
		for _, f := range old {
			if f.place != 0 {
				d.put(f)
			}
		}
	}
	d.put(e)
	return int32(e.place - 1)
}

func (d *dictionary) put(e entry) {
	mask := uint64(len(d.table) - 1)
	i := d.hash(e) & mask
	for d.table[i].place != 0 {
		i = (i + 1) & mask
	}
	d.table[i] = e
}

// bounds returns the least and the greatest of some values.
func (d *dictionary) bounds(numbers []int32) (least, greatest parquet.Value, ok bool) {
	if len(numbers) == 0 {
		return least, greatest, false
	}
	d.page++
	d.seen = append(d.seen, make([]uint32, d.len()-len(d.seen))...)
	low := d.value(uint32(numbers[0]))
	high := low
	for _, i := range numbers {
		if d.seen[i] == d.page {
			continue
		}
		d.seen[i] = d.page
		switch v := d.value(uint32(i)); {
		case string(v) < string(low):
			low = v
		case string(v) > string(high):
			high = v
		}
	}
	return parquet.ByteArrayValue(low), parquet.ByteArrayValue(high), true
}
