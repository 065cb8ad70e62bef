// Package fuzz holds fuzz tests of packages whose own tests need large libraries: go test builds all that a
// fuzzed package's tests import anew, to see where inputs lead.
package fuzz
