package safetensors

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func example(t testing.TB) []byte {
	var b bytes.Buffer
	f := File{
		Tensors:  []Tensor{{"b", []int{2, 3}, []float32{1, 2, 3, 4, 5, 6}}, {"a", []int{1}, []float32{-7}}, {"empty", []int{0, 4}, []float32{}}},
		Metadata: map[string]string{"k": "v"},
	}
	if err := Write(&b, f); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	data := example(t)
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := Write(&again, f); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, again.Bytes()) || !reflect.DeepEqual(f.Metadata, map[string]string{"k": "v"}) || f.Tensors[0].Data[5] != 6 {
		t.Fatalf("round trip changed the file: %+v", f)
	}
}

// TestParseAnywhere: bytes that no float32 may begin at give the same values.
func TestParseAnywhere(t *testing.T) {
	data := example(t)
	want, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	for shift := range 8 {
		got, err := Parse(append(make([]byte, shift, shift+len(data)), data...)[shift:])
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d bytes behind: %+v, %v; want %+v", shift, got, err, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	data := example(t)
	for name, bad := range map[string][]byte{
		"empty": nil, "truncated": data[:len(data)-1], "longer": append(bytes.Clone(data), 0),
		"header":  append([]byte{255, 255, 255, 255, 255, 255, 255, 127}, data[8:]...),
		"overlap": bytes.Replace(data, []byte(`[24,28]`), []byte(`[20,24]`), 1),
	} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := Write(&bytes.Buffer{}, File{Tensors: []Tensor{{"a", []int{2}, []float32{1}}}}); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("a wrong shape gave %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example(f))
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := Write(&b, file); err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
	})
}
