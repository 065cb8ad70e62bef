// Package bench measures what onerec claims, beside its peers where there are
// any. docs/benchmarks.md says what was measured, on what, and how to repeat it.
package bench
