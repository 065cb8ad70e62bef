package schemas

import (
	"fmt"
	"slices"

	"gopkg.in/yaml.v3"
)

// AsyncAPI returns the contract of the topics as an AsyncAPI 3 document, for the
// teams that own or read them. It is made from [Topics] alone; docs/asyncapi.yaml
// is its output, and a test keeps it so.
func AsyncAPI() ([]byte, error) {
	channels, operations := new(yaml.Node), new(yaml.Node)
	channels.Kind, operations.Kind = yaml.MappingNode, yaml.MappingNode
	for _, t := range Topics() {
		payload := map[string]any{"type": "object", "description": "Protobuf message " + t.Message + ", schemas/onerec/v1/onerec.proto"}
		content := "application/x-protobuf"
		switch t.Name {
		case TopicViewsRaw:
			payload["description"] = payload["description"].(string) + "; or the same as JSON, with the header " + HeaderContentType + ": " + ContentTypeJSON
		case TopicDeadLetters:
			payload = map[string]any{"description": "The refused record's bytes, as they were."}
			content = "application/octet-stream"
		}
		message := map[string]any{
			"name": t.Message, "contentType": content, "payload": payload,
			"bindings": map[string]any{"kafka": map[string]any{"key": map[string]any{"type": "string", "description": t.Key}}},
		}
		if h := headers(t.Name); len(h) > 0 {
			message["headers"] = map[string]any{"type": "object", "properties": h}
		}
		kafka := map[string]any{"cleanup.policy": []string{t.Settings()["cleanup.policy"]}}
		if !t.Compacted {
			kafka["retention.ms"] = t.Retention.Milliseconds()
		}
		partitioning := "one partition"
		if t.ByUser {
			partitioning = "keyed by user, co-partitioned with the other topics keyed by user"
		}
		if err := put(channels, t.Name, map[string]any{
			"address":     t.Name,
			"description": fmt.Sprintf("%s Owner: %s; %s.", t.Doc, t.Owner, partitioning),
			"messages":    map[string]any{"record": message},
			"bindings":    map[string]any{"kafka": map[string]any{"topicConfiguration": kafka}},
		}); err != nil {
			return nil, err
		}
		for action, services := range map[string][]string{"send": t.Producers, "receive": t.Consumers} {
			for _, s := range services {
				if err := put(operations, s+"-"+action+"-"+t.Name, map[string]any{
					"action": action, "channel": map[string]any{"$ref": "#/channels/" + t.Name}, "summary": s,
				}); err != nil {
					return nil, err
				}
			}
		}
	}
	sortKeys(operations)
	root := new(yaml.Node)
	root.Kind = yaml.MappingNode
	for _, e := range []struct {
		key   string
		value any
	}{
		{"asyncapi", "3.0.0"},
		{"info", map[string]any{
			"title": "onerec", "version": "1.0.0", "license": map[string]any{"name": "Apache 2.0"},
			"description": "The topics of onerec. Values are Protobuf. Fields are only ever added, never renumbered; every time is in milliseconds since the Unix epoch.",
		}},
		{"defaultContentType", "application/x-protobuf"},
		{"channels", channels},
		{"operations", operations},
	} {
		if err := put(root, e.key, e.value); err != nil {
			return nil, err
		}
	}
	out, err := yaml.Marshal(root)
	if err != nil {
		return nil, fmt.Errorf("write AsyncAPI: %w", err)
	}
	return out, nil
}

// headers describes the headers of a topic's records.
func headers(topic string) map[string]any {
	text := func(doc string) map[string]any { return map[string]any{"type": "string", "description": doc} }
	switch topic {
	case TopicViewsRaw:
		return map[string]any{
			HeaderContentType: text(ContentTypeJSON + " for JSON; absent for Protobuf"),
			HeaderProducer:    text("the program that sends; optional"),
		}
	case TopicViews:
		return map[string]any{HeaderWatermark: text("on a record without a value: no view older than this, in ms since the epoch, follows on the partition")}
	case TopicDeadLetters:
		return map[string]any{
			HeaderReason: text("the rule that failed"), HeaderError: text("what was wrong"), HeaderTopic: text("where the record was"),
			HeaderPartition: text("decimal"), HeaderOffset: text("decimal"), HeaderTime: text("when it was refused, RFC 3339"),
		}
	}
	return nil
}

// put appends an entry to a mapping, in the order of the calls.
func put(mapping *yaml.Node, key string, value any) error {
	k, v := new(yaml.Node), new(yaml.Node)
	k.SetString(key)
	if n, ok := value.(*yaml.Node); ok {
		v = n
	} else if err := v.Encode(value); err != nil {
		return fmt.Errorf("write AsyncAPI: %s: %w", key, err)
	}
	mapping.Content = append(mapping.Content, k, v)
	return nil
}

// sortKeys puts a mapping in the order of its keys.
func sortKeys(mapping *yaml.Node) {
	var pairs [][2]*yaml.Node
	for i := 0; i < len(mapping.Content); i += 2 {
		pairs = append(pairs, [2]*yaml.Node{mapping.Content[i], mapping.Content[i+1]})
	}
	slices.SortFunc(pairs, func(a, b [2]*yaml.Node) int {
		if a[0].Value < b[0].Value {
			return -1
		}
		return 1
	})
	mapping.Content = mapping.Content[:0]
	for _, p := range pairs {
		mapping.Content = append(mapping.Content, p[0], p[1])
	}
}
