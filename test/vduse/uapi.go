package vduse

// Requests of the control device and of a device (include/uapi/linux/vduse.h), API version 0.
const (
	setAPIVersion = 0x40088101 // uint64
	createDev     = 0x41508102 // devConfig; the size in the number leaves the configuration space out
	destroyDev    = 0x41008103 // name

	iotlbGetFD   = 0xc0208110 // iotlbEntry
	getFeatures  = 0x80088111 // uint64
	vqSetup      = 0x40208114 // vqConfig
	vqGetInfo    = 0xc0308115 // vqInfo
	vqSetupKick  = 0x40088116 // vqEventFD
	vqInjectIRQ  = 0x40048117 // uint32
	iotlbRegUMem = 0x40308118 // iovaUMem
)

// Messages of the kernel (enum vduse_req_type), how many bytes one of them or its answer has, and where what differs begins.
const (
	getVQState  = 0
	setStatus   = 1
	updateIOTLB = 2

	messageLen  = 152
	messageBody = 24

	resultFailed = 1 // of an answer; 0: done
)

// Bits of the device status (virtio 1.2, section 2.1). 0 is a reset.
const statusDriverOK = 4

const (
	nameLen     = 256
	netDeviceID = 1
	pageSize    = 4096
	// bounceSize is how much of a device's I/O addresses, from 0 on, the kernel copies buffers through (VDUSE_BOUNCE_SIZE of
	// drivers/vdpa/vdpa_user/vduse_dev.c); memory for it is registered as a whole.
	bounceSize = 64 << 20
)

type name [nameLen]byte

// devConfig is struct vduse_dev_config with a struct virtio_net_config, as long as the kernel reads of it.
type devConfig struct {
	Name             name
	Vendor, Device   uint32
	Features         uint64
	VQNum, VQAlign   uint32
	_                [13]uint32
	ConfigSize       uint32
	MAC              [6]byte
	Status, MaxPairs uint16
	MTU              uint16
	_                [12]byte
}

// netConfigLen are the bytes of the configuration space in devConfig.
const netConfigLen = 24

type iotlbEntry struct {
	Offset, Start, Last uint64
	Perm                uint8
	_                   [7]byte
}

type vqConfig struct {
	Index   uint32
	MaxSize uint16
	_       [13]uint16
}

type vqInfo struct {
	Index, Num           uint32
	Desc, Driver, Device uint64 // I/O addresses
	AvailIndex           uint16 // of a split ring
	_                    [6]byte
	Ready                uint8
	_                    [7]byte
}

type vqEventFD struct {
	Index uint32
	FD    int32
}

type iovaUMem struct {
	Addr, IOVA, Size uint64
	_                [3]uint64
}
