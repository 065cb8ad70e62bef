package delta

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// Action is a line of a commit; one of its fields is set. The names are the protocol's.
type Action struct {
	CommitInfo *CommitInfo `json:"commitInfo,omitempty" parquet:"-"`
	Protocol   *Protocol   `json:"protocol,omitempty" parquet:"protocol,optional"`
	Metadata   *Metadata   `json:"metaData,omitempty" parquet:"metaData,optional"`
	Txn        *Txn        `json:"txn,omitempty" parquet:"txn,optional"`
	Add        *Add        `json:"add,omitempty" parquet:"add,optional"`
	Remove     *Remove     `json:"remove,omitempty" parquet:"remove,optional"`
}

// CommitInfo says who committed, for people and for a writer that looks for its own commit.
type CommitInfo struct {
	Timestamp  int64  `json:"timestamp"` // ms since epoch
	Operation  string `json:"operation"`
	EngineInfo string `json:"engineInfo,omitempty"`
	TxnID      string `json:"txnId,omitempty"`
}

// Protocol says what a reader and a writer must know.
type Protocol struct {
	MinReaderVersion int32 `json:"minReaderVersion" parquet:"minReaderVersion"`
	MinWriterVersion int32 `json:"minWriterVersion" parquet:"minWriterVersion"`
}

// Metadata describes the table.
type Metadata struct {
	ID               string            `json:"id" parquet:"id"`
	Name             string            `json:"name,omitempty" parquet:"name,optional"`
	Description      string            `json:"description,omitempty" parquet:"description,optional"`
	Format           Format            `json:"format" parquet:"format"`
	SchemaString     string            `json:"schemaString" parquet:"schemaString"`
	PartitionColumns []string          `json:"partitionColumns" parquet:"partitionColumns,list"`
	Configuration    map[string]string `json:"configuration" parquet:"configuration"`
	CreatedTime      int64             `json:"createdTime,omitempty" parquet:"createdTime,optional"` // ms since epoch
}

// Format is that of the data files.
type Format struct {
	Provider string            `json:"provider" parquet:"provider"`
	Options  map[string]string `json:"options" parquet:"options"`
}

// Txn says how far an application has come that writes to the table.
type Txn struct {
	AppID       string `json:"appId" parquet:"appId"`
	Version     int64  `json:"version" parquet:"version"`
	LastUpdated int64  `json:"lastUpdated,omitempty" parquet:"lastUpdated,optional"` // ms since epoch
}

// Add makes a data file part of the table.
type Add struct {
	Path             string            `json:"path" parquet:"path"` // within the table's folder
	PartitionValues  map[string]string `json:"partitionValues" parquet:"partitionValues"`
	Size             int64             `json:"size" parquet:"size"`                         // bytes
	ModificationTime int64             `json:"modificationTime" parquet:"modificationTime"` // ms since epoch
	DataChange       bool              `json:"dataChange" parquet:"dataChange"`             // false: rows only moved here from other files
	Stats            string            `json:"stats,omitempty" parquet:"stats,optional"`    // JSON, see Stats
}

// Remove takes a data file out of the table; the file itself stays until [Table.Vacuum].
type Remove struct {
	Path                 string            `json:"path" parquet:"path"`
	DeletionTimestamp    int64             `json:"deletionTimestamp" parquet:"deletionTimestamp,optional"` // ms since epoch
	DataChange           bool              `json:"dataChange" parquet:"dataChange"`
	ExtendedFileMetadata bool              `json:"extendedFileMetadata,omitempty" parquet:"extendedFileMetadata,optional"`
	PartitionValues      map[string]string `json:"partitionValues,omitempty" parquet:"partitionValues"`
	Size                 int64             `json:"size,omitempty" parquet:"size,optional"`
}

// Stats are of a data file's columns, the bounds by column name.
type Stats struct {
	NumRecords int64            `json:"numRecords"`
	MinValues  map[string]any   `json:"minValues,omitempty"`
	MaxValues  map[string]any   `json:"maxValues,omitempty"`
	NullCount  map[string]int64 `json:"nullCount,omitempty"`
}

// Remove returns the action that takes the file out again.
func (a *Add) Remove(at int64, dataChange bool) Action {
	return Action{Remove: &Remove{
		Path: a.Path, DeletionTimestamp: at, DataChange: dataChange,
		ExtendedFileMetadata: true, PartitionValues: a.PartitionValues, Size: a.Size,
	}}
}

// Rows returns how many rows the file has, as its statistics say; -1: they don't.
func (a *Add) Rows() int64 {
	s := Stats{NumRecords: -1}
	if json.Unmarshal([]byte(a.Stats), &s) != nil {
		return -1
	}
	return s.NumRecords
}

// parse reads a commit: one action a line. What it does not know it leaves out, as the protocol asks: what must
// be known is told by the protocol's version.
func parse(data []byte) ([]Action, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	var out []Action
	for {
		var a Action
		if err := dec.Decode(&a); err == io.EOF {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("action %d: %w", len(out)+1, err)
		}
		switch {
		case a.Add != nil && a.Add.Path == "", a.Remove != nil && a.Remove.Path == "":
			return nil, fmt.Errorf("action %d: a file without a path", len(out)+1)
		case a.Txn != nil && a.Txn.AppID == "":
			return nil, fmt.Errorf("action %d: a txn without an appId", len(out)+1)
		}
		out = append(out, a)
	}
}

func format(actions []Action) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, a := range actions {
		if err := enc.Encode(a); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}
