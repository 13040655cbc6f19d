// Package boards owns what this machine is and can do: its model, processor,
// clock, power, temperature, storage, cgroups and kernel, read from the files
// that the kernel and the distribution offer. It turns them into node labels
// ([Board.Labels]), node conditions ([Readings.Conditions]) and a list of what is
// wrong and what to do about it ([Machine.Doctor]).
//
// Everything is read through an [io/fs.FS] that stands for "/", so that a board
// is tested without being there: testdata holds trees recorded on boards with
// [Record]. To add a board, record one, put it into testdata, and add a line
// to the table in boards_test.go; most boards need no code.
//
// It imports the standard library and golang.org/x/sys and nothing of ours:
// edgelet links it on every board. Called by edgelet and by `coracle doctor`.
// Nothing here writes, loads modules or needs root.
package boards
