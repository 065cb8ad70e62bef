package snapshots

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// views over the tables: what is asked for most, as tables of its own that need no room.
var views = []struct{ name, table, doc, query string }{
	{"views", TableSessions, "a row a view", `select session_id, user_id, good, date, hour, unnest(views, recursive := true) from sessions`},
	{"metrics", TableCheckpoints, "a row a figure of a checkpoint", `select version, model, kind, parent, created, unnest(metrics, recursive := true) from checkpoints`},
	{"verdicts", TableSessions, "a row a session: what the rules said", `select session_id, user_id, "start", "end", len(views) as views, total_watch_ms, good, failed_rules, rules_version, date, hour from sessions`},
	{"recommendations", TableSessions, "a row a view that a recommendation led to, by checkpoint", `select checkpoint_version, recommendation_id, user_id, session_id, item_id, "time", watch_ms, duration_ms, "like", follow, comment, share, dislike, surface, date, hour from views where checkpoint_version <> ''`},
}

// WriteSQL writes statements for DuckDB that make a view of each table, over exactly the files that are its rows
// now, and further views over those. An empty table has none.
func (s *Store) WriteSQL(ctx context.Context, w io.Writer, days Range) error {
	there := make(map[string]bool)
	for _, table := range Tables() {
		files, err := s.Files(ctx, table.Name, days)
		if err != nil {
			return err
		}
		if len(files) == 0 {
			continue
		}
		there[table.Name] = true
		names := make([]string, len(files))
		for i, f := range files {
			names[i] = "  " + quote(s.Locate(table.Name, f.Path))
		}
		what := "*"
		if firstLayout.MatchString(files[0].Path) { // its folders are partitions of the topic
			what = `* exclude (partition), "end"::date as date, hour("end") as hour`
		}
		if _, err := fmt.Fprintf(w, "-- %s\ncreate or replace view %s as select %s from read_parquet([\n%s\n], hive_partitioning = true, union_by_name = true);\n", table.Doc, table.Name, what, strings.Join(names, ",\n")); err != nil {
			return err
		}
	}
	for _, v := range views {
		if there[v.table] {
			if _, err := fmt.Fprintf(w, "-- %s\ncreate or replace view %s as %s;\n", v.doc, v.name, v.query); err != nil {
				return err
			}
		}
	}
	return nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// Locate returns where engines find a file of a table: a path, or a URL.
func (s *Store) Locate(table, name string) string {
	key := table + "/" + name
	if file, ok := s.bucket.Path(key); ok {
		return filepath.ToSlash(file)
	}
	url, _, _ := strings.Cut(s.URL(), "?") // the rest is for the driver
	return strings.TrimSuffix(url, "/") + "/" + key
}
