package publisher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"onerec/internal/buckets"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Publish writes a version: the files, several at a time, and, when all of them have been read back, the
// manifest, which makes it exist. It fills in m's Schema, Version, CreatedAt and Files and
// returns the manifest's hash.
//
// A publish that fails takes back what it wrote, as well as it can. One that was killed is
// taken up by the next one of the same files, which writes only what is missing.
func (s *Store) Publish(ctx context.Context, m *Manifest, files map[string][]byte) (hash string, err error) {
	all := sha256.New()
	m.Files = nil
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasPrefix(name, "manifest.") || strings.ContainsAny(name, `/\\`) {
			return "", fmt.Errorf("publish: a file can't be called %q", name)
		}
		sum := sha256.Sum256(files[name])
		all.Write(sum[:])
		m.Files = append(m.Files, File{name, int64(len(files[name])), hex.EncodeToString(sum[:])})
	}
	if m.Version, err = s.claim(ctx, hex.EncodeToString(all.Sum(nil)[:4])); err != nil {
		return "", err
	}
	m.Schema, m.CreatedAt = SchemaVersion, time.Now().UTC().Truncate(time.Millisecond)
	signed := ""
	defer func() {
		if err != nil {
			s.takeBack(context.WithoutCancel(ctx), m, signed)
		}
	}()
	err = s.parts(ctx, m.Files, func(ctx context.Context, i int) error {
		f := m.Files[i]
		if _, err := s.part(ctx, m.Version, f); err == nil {
			return nil // a publish that was killed had come so far
		}
		if err := s.bucket.WriteAll(ctx, versionKey(m.Version, f.Name), files[f.Name], nil); err != nil {
			return fmt.Errorf("publish %s: write %s to %s: %w", m.Version, f.Name, s.bucket.URL, err)
		}
		if _, err := s.part(ctx, m.Version, f); err != nil { // read back before anyone hears of it
			return fmt.Errorf("publish %s: %w", m.Version, err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", fmt.Errorf("publish %s: manifest: %w", m.Version, err)
	}
	hash = hashOf(text)
	if s.Sign != nil {
		signed = fmt.Sprintf(fileSignature, hash)
		if err := s.bucket.WriteAll(ctx, versionKey(m.Version, signed), sign(s.Sign, text), &blob.WriterOptions{ContentType: "application/json"}); err != nil {
			return "", fmt.Errorf("publish %s: write the signature to %s: %w", m.Version, s.bucket.URL, err)
		}
	}
	// Of two writers of one version, one fails.
	if err := s.bucket.Create(ctx, versionKey(m.Version, fileManifest), text); err != nil {
		return "", fmt.Errorf("publish %s: write the manifest to %s: %w", m.Version, s.bucket.URL, err)
	}
	if _, _, err := s.Manifest(ctx, m.Version, hash); err != nil {
		return "", fmt.Errorf("publish %s: %w", m.Version, err)
	}
	s.tidy(ctx, m, signed)
	return hash, nil
}

// tidy removes from a version's folder what is no part of it: the signatures of publishes that were
// killed. Nobody reads them, so it is no error if they stay.
func (s *Store) tidy(ctx context.Context, m *Manifest, signed string) {
	part := map[string]bool{versionKey(m.Version, fileManifest): true, versionKey(m.Version, signed): true}
	for _, name := range names(m.Files) {
		part[versionKey(m.Version, name)] = true
	}
	_ = s.each(ctx, versionKey(m.Version, ""), func(o *blob.ListObject) error {
		if part[o.Key] {
			return nil
		}
		return s.bucket.Delete(ctx, o.Key)
	})
}

// claim takes the next number for a version whose files have this hash, or takes up one
// that was begun and never finished.
func (s *Store) claim(ctx context.Context, content string) (version string, err error) {
	folders, err := s.folders(ctx)
	if err != nil {
		return "", err
	}
	numbers, err := s.numbers(ctx)
	if err != nil {
		return "", err
	}
	last := 0
	for _, n := range numbers {
		last = max(last, n)
	}
	for v, keys := range folders {
		n, err := sequence(v)
		if err != nil {
			return "", err
		}
		last = max(last, n)
		if strings.HasSuffix(v, "-"+content) && !whole(v, keys) {
			return v, nil
		}
	}
	const most = 1000
	for n := last + 1; n <= last+most; n++ {
		version = fmt.Sprintf("%06d-%s", n, content)
		err := s.bucket.Create(ctx, numberKey(n), []byte(version))
		if err == nil {
			return version, nil
		}
		if !errors.Is(err, buckets.ErrExists) { // another writer was faster
			return "", fmt.Errorf("publish: take number %d in %s: %w", n, s.bucket.URL, err)
		}
	}
	return "", fmt.Errorf("publish: the numbers %d to %d in %s were all taken meanwhile", last+1, last+most, s.bucket.URL)
}

func numberKey(n int) string { return fmt.Sprintf("numbers/%06d", n) }

// takeBack removes what a publish wrote: a full disk would only get fuller. What stays is no version,
// for want of a manifest; if there is a good one, it counts, and perhaps another writer made it.
func (s *Store) takeBack(ctx context.Context, m *Manifest, signed string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	text, err := s.read(ctx, m.Version, fileManifest, maxManifest)
	remove := names(m.Files)
	switch {
	case err == nil && json.Unmarshal(text, new(Manifest)) != nil:
		remove = append([]string{fileManifest}, remove...) // first, so that the version ends before its files do
	case !errors.Is(err, ErrNotFound):
		return
	}
	if signed != "" {
		remove = append(remove, signed)
	}
	for _, name := range remove {
		_ = s.bucket.Delete(ctx, versionKey(m.Version, name))
	}
}

func names(files []File) (out []string) {
	for _, f := range files {
		out = append(out, f.Name)
	}
	return out
}

// GC says what is kept.
type GC struct {
	Keep    int           // newest versions
	KeepFor time.Duration // younger versions, and what may be an upload under way
	// Referenced are versions that something points at: what is on a channel. They are kept, and the version that each was
	// trained from, so that a rollback finds it.
	Referenced []string
	DryRun     bool // only say what would be removed
}

// Collected is what was removed, or would be.
type Collected struct {
	Versions   []string `json:"versions"`   // whole ones
	Unfinished []string `json:"unfinished"` // uploads that never got a manifest
	Bytes      int64    `json:"bytes"`
}

// Collect removes versions that are not to be kept, and uploads that were never finished. A
// version's manifest goes first, so that a collection that is killed leaves no half version that anyone
// would load.
func (s *Store) Collect(ctx context.Context, gc GC, now time.Time) (c Collected, err error) {
	if gc.Keep < 1 {
		return c, errors.New("collect checkpoints: at least the newest version is kept")
	}
	folders, err := s.folders(ctx)
	if err != nil {
		return c, err
	}
	versions := slices.Sorted(maps.Keys(folders))
	keep := make(map[string]bool)
	for kept, i := 0, len(versions)-1; i >= 0 && kept < gc.Keep; i-- {
		ok, err := s.sound(ctx, versions[i], folders[versions[i]])
		if err != nil {
			return c, err
		}
		if ok {
			keep[versions[i]] = true
			kept++
		}
	}
	for _, v := range gc.Referenced {
		keep[v] = true
		m, _, err := s.Manifest(ctx, v, "")
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil: // without its parent's name nothing is safe
			return c, fmt.Errorf("collect checkpoints: %s is in use: %w", v, err)
		default:
			keep[m.Parent] = true
		}
	}
	for _, v := range versions {
		var newest time.Time
		var size int64
		for _, o := range folders[v] {
			size += o.Size
			if o.ModTime.After(newest) {
				newest = o.ModTime
			}
		}
		if keep[v] || now.Sub(newest) < gc.KeepFor {
			continue
		}
		if c.Bytes += size; whole(v, folders[v]) {
			c.Versions = append(c.Versions, v)
		} else {
			c.Unfinished = append(c.Unfinished, v)
		}
		if gc.DryRun {
			continue
		}
		if err := s.remove(ctx, v, folders[v]); err != nil {
			return c, err
		}
	}
	if gc.DryRun {
		return c, nil
	}
	return c, s.forgetNumbers(ctx)
}

// sound reports whether a version has a good manifest and files as long as it says: one that was
// damaged must not be kept in place of one that can be loaded.
func (s *Store) sound(ctx context.Context, version string, keys []*blob.ListObject) (bool, error) {
	if !whole(version, keys) {
		return false, nil
	}
	m, _, err := s.Manifest(ctx, version, "")
	switch {
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrUntrusted), errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	sizes := make(map[string]int64)
	for _, o := range keys {
		sizes[o.Key] = o.Size
	}
	for _, f := range m.Files {
		if size, ok := sizes[versionKey(version, f.Name)]; !ok || size != f.Bytes {
			return false, nil
		}
	}
	return true, nil
}

func (s *Store) remove(ctx context.Context, version string, keys []*blob.ListObject) error {
	slices.SortStableFunc(keys, func(a, b *blob.ListObject) int {
		first := func(o *blob.ListObject) int {
			if o.Key == versionKey(version, fileManifest) {
				return 0
			}
			return 1
		}
		return first(a) - first(b)
	})
	for _, o := range keys {
		if err := s.bucket.Delete(ctx, o.Key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
			return fmt.Errorf("collect checkpoints: remove %s from %s: %w", o.Key, s.bucket.URL, err)
		}
	}
	return nil
}

// forgetNumbers removes claims that stand below a version or another claim: the highest is what
// keeps numbers from being given twice.
func (s *Store) forgetNumbers(ctx context.Context) error {
	numbers, err := s.numbers(ctx)
	if err != nil {
		return err
	}
	slices.Sort(numbers)
	for _, n := range numbers[:max(0, len(numbers)-1)] {
		if err := s.bucket.Delete(ctx, numberKey(n)); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
			return fmt.Errorf("collect checkpoints: remove number %d from %s: %w", n, s.bucket.URL, err)
		}
	}
	return nil
}
