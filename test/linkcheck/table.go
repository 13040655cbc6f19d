package linkcheck

import "encoding/binary"

// table maps the keys of states to a number that isn't 0, in 12 bytes each: a
// hundred million of them are to be kept. Of a key it keeps 64 bits, so among ten
// million states one is taken for another with a probability of 1 to 400,000.
type table struct {
	keys   []uint64 // 0 is free
	values []uint32
	used   int
}

func short(k Key) uint64 { return max(binary.LittleEndian.Uint64(k[:8]), 1) }

func newTable() *table {
	return &table{keys: make([]uint64, 1<<12), values: make([]uint32, 1<<12)}
}

func (t *table) slot(key uint64) int {
	mask := uint64(len(t.keys) - 1)
	i := (key ^ key>>32) & mask
	for t.keys[i] != 0 && t.keys[i] != key {
		i = (i + 1) & mask
	}
	return int(i)
}

// get is 0 if there is no such key.
func (t *table) get(k Key) uint32 { return t.values[t.slot(short(k))] }

// put returns whether the key is new.
func (t *table) put(k Key, value uint32) bool {
	if t.used*10 > len(t.keys)*7 {
		t.grow()
	}
	key := short(k)
	i := t.slot(key)
	if t.keys[i] != 0 {
		return false
	}
	t.keys[i], t.values[i] = key, value
	t.used++
	return true
}

func (t *table) grow() {
	old := *t
	t.keys, t.values = make([]uint64, 2*len(old.keys)), make([]uint32, 2*len(old.keys))
	for i, key := range old.keys {
		if key != 0 {
			j := t.slot(key)
			t.keys[j], t.values[j] = key, old.values[i]
		}
	}
}
