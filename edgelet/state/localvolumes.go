package state

// bucketLocalVolumes: uid of a PersistentVolume -> path of the folder that was made
// for it. It is made with the first such volume: a node without one doesn't have it,
// and an agent that doesn't know it reads the file all the same.
var bucketLocalVolumes = []byte("local-volumes")

// LocalVolumes returns the folders that were made for volumes, by the volumes' UID.
func (s *Store) LocalVolumes() (map[string][]byte, error) { return s.records(bucketLocalVolumes) }

// PutLocalVolume notes a volume's folder and returns when that is durable; nil
// forgets it.
func (s *Store) PutLocalVolume(uid string, folder []byte) error {
	return s.putRecord(bucketLocalVolumes, "storing where volume "+uid+" is", uid, folder)
}
