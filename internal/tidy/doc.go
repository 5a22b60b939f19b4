// Package tidy holds the rules of this repository that no compiler knows, as tests: which package may import which,
// what the deterministic core may not call, how long a file may be, that what is exported is documented and has an
// Example, that documents name things that exist, and that nothing lies about that does not belong.
//
// Each rule is a table and a function from files to complaints; the function has a test of its own that shows it bad
// files. A rule for a package that does not exist is not applied. When a rule is in the way, change the table in the
// same commit as the code, with the reason beside it.
package tidy
