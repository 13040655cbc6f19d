package state

// bucketLocalVolumes: uid of a PersistentVolume -> path of the folder that was made
// for it; path of the folder that they are in -> what marks it. It is made with the first such volume: a node without one doesn't have it,
// and an agent that doesn't know it reads the file all the same.
var bucketLocalVolumes = []byte("local-volumes")

// LocalVolumes returns the folders that were made for volumes, by the volumes' UID,
// and the marks of the folders that they are in, by path.
func (s *Store) LocalVolumes() (map[string][]byte, error) { return s.records(bucketLocalVolumes) }

// PutLocalVolume replaces a record and returns when that is durable; nil deletes it.
func (s *Store) PutLocalVolume(key string, value []byte) error {
	return s.putRecord(bucketLocalVolumes, "storing where volume "+key+" is", key, value)
}
