package ops

// gorgonia.org/tensor 0.9 panics at start on Go versions newer than itself unless
// this module is recent; the import keeps go.mod from losing it.
import _ "go4.org/unsafe/assume-no-moving-gc"
