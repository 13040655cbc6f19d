// Package affinity runs edgelet/affinity side by side with upstream's CPU, memory
// and topology managers, on the same machines with the same pods. It is apart from
// that package because whoever fuzzes there would instrument upstream's kubelet.
package affinity
