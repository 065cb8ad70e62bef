package console

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Bounds of live connections.
const (
	maxBrowsers  = 200
	writeTimeout = 10 * time.Second // a browser that does not take what it is sent
	silence      = 15 * time.Second // after which a comment says that the connection lives
)

// hub sends every part of the page that changed to all browsers.
type hub struct {
	mu       sync.Mutex
	last     map[string][]byte // parts as they were sent last
	browsers map[chan []byte]bool
	closed   bool
}

func newHub() *hub { return &hub{last: make(map[string][]byte), browsers: make(map[chan []byte]bool)} }

// watched reports whether a browser has the page open.
func (h *hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.browsers) > 0
}

// publish sends the parts that are not as they were. A browser that has not taken the message before misses
// nothing: it is sent away, and comes back to a whole page.
func (h *hub) publish(parts map[string][]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := make(map[string][]byte)
	for name, html := range parts {
		if !bytes.Equal(h.last[name], html) {
			changed[name], h.last[name] = html, html
		}
	}
	if len(changed) == 0 {
		return
	}
	m := message(changed)
	for b := range h.browsers {
		select {
		case b <- m:
		default:
			delete(h.browsers, b)
			close(b)
		}
	}
}

// message is one server-sent event: for each part the element that it replaces.
func message(parts map[string][]byte) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		fmt.Fprintf(&b, `<hx-partial hx-target="#%s" hx-swap="innerMorph">`, name)
		b.Write(parts[name])
		b.WriteString("</hx-partial>")
	}
	var m bytes.Buffer
	for line := range bytes.Lines(b.Bytes()) {
		m.WriteString("data: ")
		m.Write(bytes.TrimRight(line, "\n"))
		m.WriteByte('\n')
	}
	m.WriteByte('\n')
	return m.Bytes()
}

// join adds a browser, and the message with which it begins: everything.
func (h *hub) join(parts map[string][]byte) (chan []byte, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.browsers) >= maxBrowsers {
		return nil, false
	}
	if len(h.browsers) == 0 {
		h.last = maps.Clone(parts)
	}
	b := make(chan []byte, 2)
	b <- message(parts)
	h.browsers[b] = true
	return b, true
}

func (h *hub) leave(b chan []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.browsers, b)
}

// close ends all connections, and lets nobody join.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for b := range h.browsers {
		close(b)
	}
	clear(h.browsers)
}

// events streams changes until the browser goes.
func (c *Console) events(w http.ResponseWriter, r *http.Request) {
	parts, err := c.parts()
	if err != nil {
		c.Log.Error("the console can't render", "error", err)
		http.Error(w, "the console can't render; its log says why", http.StatusInternalServerError)
		return
	}
	b, ok := c.hub.join(parts)
	if !ok {
		http.Error(w, "too many browsers are watching", http.StatusServiceUnavailable)
		return
	}
	defer c.hub.leave(b)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	// The server's limit is for requests that are slow to come; it would end the connection here, too.
	if err := out.SetReadDeadline(time.Time{}); err != nil {
		http.Error(w, "this connection can't stay open", http.StatusInternalServerError)
		return
	}
	send := func(m []byte) bool {
		if out.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return false
		}
		if _, err := w.Write(m); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	alive := time.NewTicker(silence)
	defer alive.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case m, ok := <-b:
			if !ok || !send(m) {
				return
			}
		case <-alive.C:
			if !send([]byte(": alive\n\n")) {
				return
			}
		}
	}
}
