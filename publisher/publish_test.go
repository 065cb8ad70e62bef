package publisher

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestFaultAtEveryChange: whatever change of the bucket fails, is torn or is the last one of a process, no
// reader ever loads a version that is not whole, the next publish works, and a collection leaves the
// newest version and nothing else.
func TestFaultAtEveryChange(t *testing.T) {
	ctx := t.Context()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Sign: key, Trust: []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}}
	files := func(text string) map[string][]byte {
		return map[string][]byte{"weights": []byte("the weights of " + text), "codebook": []byte("codes"), "empty": nil}
	}
	for what, name := range []string{works: "works", fails: "fails", torn: "is torn", lost: "works, its answer is lost", tornAway: "is torn and kills", crashes: "kills before", crashed: "kills after"} {
		if outcome(what) == works {
			continue
		}
		for at := 0; ; at++ {
			f := newFaulty()
			s := f.open(o)
			if _, err := s.Publish(ctx, &Manifest{Model: "m", Kind: KindBase}, files("the first")); err != nil {
				t.Fatal(err)
			}
			before := f.Keys()
			s = f.open(o)
			reached := false
			f.Fault = func(change int, _ string) outcome {
				if change == at {
					reached = true
					return outcome(what)
				}
				return works
			}
			second := &Manifest{Model: "m", Kind: KindBase}
			hash, publishErr := s.Publish(ctx, second, files("the second"))
			if !reached {
				if publishErr != nil {
					t.Fatal(publishErr)
				}
				if at < 6 { // a number, three files, a signature, a manifest
					t.Fatalf("%d changes made a version", at)
				}
				break
			}
			t.Run(fmt.Sprintf("change %d %s", at, name), func(t *testing.T) {
				s := f.open(o) // as a new process
				versions, err := s.List(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range versions {
					// A manifest is torn only where a bucket tears single writes; then it is refused.
					refused := outcome(what) == tornAway && v == second.Version
					if _, data, err := s.Load(ctx, v, ""); refused != errors.Is(err, ErrCorrupt) && refused != errors.Is(err, ErrUntrusted) || !refused && len(data) != 3 {
						t.Errorf("version %s of %v: %v", v, versions, err)
					}
				}
				if publishErr == nil {
					if _, _, err := s.Load(ctx, second.Version, hash); err != nil {
						t.Errorf("published, and does not load: %v", err)
					}
				} else if outcome(what) == fails || outcome(what) == torn {
					for _, k := range f.Keys() {
						if !slices.Contains(before, k) && !strings.HasPrefix(k, "numbers/") {
							t.Errorf("a publish that failed left %s", k)
						}
					}
				}
				again := &Manifest{Model: "m", Kind: KindBase}
				hash, err := s.Publish(ctx, again, files("the second"))
				if err != nil {
					t.Fatalf("the next publish: %v", err)
				}
				if _, _, err := s.Load(ctx, again.Version, hash); err != nil {
					t.Errorf("the next version: %v", err)
				}
				if _, err := s.Collect(ctx, GC{Keep: 1}, f.Now); err != nil {
					t.Fatal(err)
				}
				var want []string
				for _, name := range []string{"codebook", "empty", fmt.Sprintf(fileSignature, hash), fileManifest, "weights"} {
					want = append(want, versionKey(again.Version, name))
				}
				slices.Sort(want)
				n, _ := sequence(again.Version)
				want = append([]string{numberKey(n)}, want...)
				if got := f.Keys(); !slices.Equal(got, want) {
					t.Errorf("after the collection there are\n%v, want\n%v", got, want)
				}
			})
		}
	}
}

// TestCollectionIsKilled: wherever a collection ends, what can be listed loads, and the next one
// finishes.
func TestCollectionIsKilled(t *testing.T) {
	ctx := t.Context()
	for at := 0; ; at++ {
		f := newFaulty()
		s := f.open(Options{})
		for i := range 4 {
			if _, err := s.Publish(ctx, &Manifest{Model: "m"}, map[string][]byte{"a": {byte(i)}, "z": {1}}); err != nil {
				t.Fatal(err)
			}
		}
		s = f.open(Options{})
		reached := false
		f.Fault = func(change int, _ string) outcome {
			if change == at {
				reached = true
				return crashes
			}
			return works
		}
		_, err := s.Collect(ctx, GC{Keep: 2}, f.Now)
		if reached != (err != nil) {
			t.Fatalf("killed at %d: %v, %v", at, reached, err)
		}
		s = f.open(Options{})
		versions, err := s.List(ctx)
		if err != nil || len(versions) < 2 {
			t.Fatalf("%v, %v", versions, err)
		}
		for _, v := range versions {
			if _, _, err := s.Load(ctx, v, ""); err != nil {
				t.Errorf("killed at %d: %v", at, err)
			}
		}
		if _, err := s.Collect(ctx, GC{Keep: 2}, f.Now); err != nil {
			t.Fatal(err)
		}
		if keys := f.Keys(); len(keys) != 7 { // a number, and three files of two versions
			t.Fatalf("left %v", keys)
		}
		if !reached {
			return
		}
	}
}

// TestResume: a publish that was killed is taken up by the next one of the same files, under its number, and
// what is there already is not written again.
func TestResume(t *testing.T) {
	f := newFaulty()
	s := f.open(Options{})
	files := map[string][]byte{"a": []byte("first"), "b": []byte("second"), "c": []byte("third"), "d": nil}
	f.Fault = func(_ int, key string) outcome {
		if strings.HasSuffix(key, fileManifest) {
			return crashes
		}
		return works
	}
	killed := &Manifest{Model: "m"}
	if _, err := s.Publish(t.Context(), killed, files); err == nil {
		t.Fatal("published by a dead process")
	}
	s = f.open(Options{})
	var progress int64
	s.Progress = func(done, total int64) {
		if progress = done; total != 16 {
			t.Errorf("progress of %d bytes", total)
		}
	}
	m := &Manifest{Model: "m"}
	if _, err := s.Publish(t.Context(), m, files); err != nil {
		t.Fatal(err)
	}
	if m.Version != killed.Version || f.Made != 1 || progress != 16 {
		t.Errorf("version %s after %s, %d changes, progress %d", m.Version, killed.Version, f.Made, progress)
	}
}

// TestWritersTakeDifferentNumbers, however many publish at the same time.
func TestWritersTakeDifferentNumbers(t *testing.T) {
	f := newFaulty()
	s := f.open(Options{})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.Publish(context.Background(), &Manifest{Model: "m"}, map[string][]byte{"a": fmt.Append(nil, i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	versions, err := s.List(t.Context())
	if err != nil || len(versions) != 20 {
		t.Fatalf("%v, %v", versions, err)
	}
	for i, v := range versions {
		if n, _ := sequence(v); n != i+1 {
			t.Fatalf("numbers of %v", versions)
		}
	}
}

// TestCollect: what is kept follows from the rules alone.
func TestCollect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		f := newFaulty()
		s := f.open(Options{})
		start := f.Now
		type made struct {
			version, parent string
			at              time.Time
		}
		var all []made
		for i := range rapid.IntRange(1, 8).Draw(t, "versions") {
			m := &Manifest{Model: "m"}
			if i > 0 {
				m.Parent = all[rapid.IntRange(0, i-1).Draw(t, "parent")].version
			}
			if _, err := s.Publish(ctx, m, map[string][]byte{"a": {byte(i)}}); err != nil {
				t.Fatal(err)
			}
			all = append(all, made{m.Version, m.Parent, f.Now})
			f.Now = f.Now.Add(time.Hour)
		}
		if rapid.Bool().Draw(t, "an upload is under way") {
			if err := s.bucket.WriteAll(ctx, versionKey("000099-aa", "a"), []byte("x"), nil); err != nil {
				t.Fatal(err)
			}
		}
		gc := GC{Keep: rapid.IntRange(1, 9).Draw(t, "keep"), KeepFor: time.Duration(rapid.IntRange(0, 9).Draw(t, "hours")) * time.Hour, DryRun: rapid.Bool().Draw(t, "dry run")}
		want := make(map[string]bool)
		for _, v := range all {
			if rapid.IntRange(0, 3).Draw(t, "referenced") == 0 {
				gc.Referenced = append(gc.Referenced, v.version)
				want[v.version], want[v.parent] = true, true
			}
		}
		delete(want, "")
		for i, v := range all {
			if i >= len(all)-gc.Keep || f.Now.Sub(v.at) < gc.KeepFor {
				want[v.version] = true
			}
		}
		c, err := s.Collect(ctx, gc, f.Now)
		if err != nil {
			t.Fatal(err)
		}
		left, err := s.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if gc.DryRun {
			if len(left) != len(all) {
				t.Fatalf("a dry run left %v", left)
			}
			left = slices.DeleteFunc(left, func(v string) bool { return slices.Contains(c.Versions, v) })
		}
		if !slices.Equal(left, slices.Sorted(maps.Keys(want))) {
			t.Fatalf("%+v at %v left %v, want %v", gc, f.Now.Sub(start), left, want)
		}
		// Numbers are never given twice.
		f.Now = f.Now.Add(time.Hour)
		m := &Manifest{Model: "m"}
		if _, err := s.Publish(ctx, m, map[string][]byte{"b": nil}); err != nil || m.Version <= all[len(all)-1].version {
			t.Fatalf("%s follows %v, %v", m.Version, all, err)
		}
	})
	if _, err := newFaulty().open(Options{}).Collect(t.Context(), GC{}, time.Now()); err == nil {
		t.Error("everything may be collected")
	}
}

// TestSignatures: who trusts keys loads what one of them signed, and nothing else.
func TestSignatures(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	var private []ed25519.PrivateKey
	var public []ed25519.PublicKey
	for i := range 2 {
		a, b, err := NewKey()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := errors.Join(os.WriteFile(file, a, 0o600), os.WriteFile(file+".pub", b, 0o600)); err != nil {
			t.Fatal(err)
		}
		k, err := ReadPrivateKey(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ReadPublicKey(file + ".pub")
		if err != nil || !p.Equal(k.Public()) {
			t.Fatalf("%v, %v", p, err)
		}
		private, public = append(private, k), append(public, p)
		if _, err := ReadPublicKey(file); err == nil {
			t.Error("a private key is read as a public one")
		}
		if _, err := ReadPrivateKey(file + ".pub"); err == nil {
			t.Error("a public key is read as a private one")
		}
	}
	f := newFaulty()
	publish := func(o Options) string {
		m := &Manifest{Model: "m"}
		if _, err := f.open(o).Publish(ctx, m, map[string][]byte{"a": nil}); err != nil {
			t.Fatal(err)
		}
		return m.Version
	}
	unsigned, first, second := publish(Options{}), publish(Options{Sign: private[0]}), publish(Options{Sign: private[1]})
	load := func(version string, trust ...ed25519.PublicKey) error {
		_, _, err := f.open(Options{Trust: trust}).Load(ctx, version, "")
		return err
	}
	for _, tt := range []struct {
		version string
		trust   []ed25519.PublicKey
		ok      bool
	}{
		{unsigned, nil, true}, {first, nil, true}, {first, public[:1], true}, {first, public, true}, {second, public, true},
		{unsigned, public, false}, {first, public[1:], false}, {second, public[:1], false},
	} {
		if err := load(tt.version, tt.trust...); (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s, trusting %d keys: %v", tt.version, len(tt.trust), err)
		}
	}
	// Another version's signature, and every flipped bit of the right one.
	signed := func(version string) string {
		return versionKey(version, fmt.Sprintf(fileSignature, hashOf(f.Objects[versionKey(version, fileManifest)].Data)))
	}
	sig, other := f.Objects[signed(first)], f.Objects[signed(second)]
	f.Objects[signed(first)] = other
	if err := load(first, public...); !errors.Is(err, ErrUntrusted) {
		t.Errorf("another version's signature: %v", err)
	}
	for i := range sig.Data {
		flipped := object{Data: slices.Clone(sig.Data), At: sig.At}
		flipped.Data[i] ^= 1
		f.Objects[signed(first)] = flipped
		if err := load(first, public...); err == nil && !strings.EqualFold(string(flipped.Data), string(sig.Data)) {
			// JSON takes field names in either case, so that alone changes nothing.
			t.Errorf("with byte %d of the signature changed it loads: %s", i, flipped.Data)
		}
	}
}
