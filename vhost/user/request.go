package user

import "strconv"

// Request numbers a message from the front-end to the back-end.
type Request uint32

// The requests of vhost-user that a network front-end may send, with QEMU's
// numbers. Those of other device classes are answered as unknown.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SendRARP            Request = 19
	NetSetMTU           Request = 20
	SetBackendReqFD     Request = 21
	IOTLBMsg            Request = 22
	SetVringEndian      Request = 23
	GetConfig           Request = 24
	SetConfig           Request = 25
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	ResetDevice         Request = 34
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40

	numRequests = 48 // one above the last number the specification assigns
)

// requestNames is indexed by Request; holes are requests we only know of.
var requestNames = [numRequests]string{
	GetFeatures: "GET_FEATURES", SetFeatures: "SET_FEATURES", SetOwner: "SET_OWNER", ResetOwner: "RESET_OWNER",
	SetMemTable: "SET_MEM_TABLE", SetLogBase: "SET_LOG_BASE", SetLogFD: "SET_LOG_FD", SetVringNum: "SET_VRING_NUM",
	SetVringAddr: "SET_VRING_ADDR", SetVringBase: "SET_VRING_BASE", GetVringBase: "GET_VRING_BASE",
	SetVringKick: "SET_VRING_KICK", SetVringCall: "SET_VRING_CALL", SetVringErr: "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES", SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	GetQueueNum: "GET_QUEUE_NUM", SetVringEnable: "SET_VRING_ENABLE", SendRARP: "SEND_RARP", NetSetMTU: "NET_SET_MTU",
	SetBackendReqFD: "SET_BACKEND_REQ_FD", IOTLBMsg: "IOTLB_MSG", SetVringEndian: "SET_VRING_ENDIAN",
	GetConfig: "GET_CONFIG", SetConfig: "SET_CONFIG", GetInflightFD: "GET_INFLIGHT_FD", SetInflightFD: "SET_INFLIGHT_FD",
	ResetDevice: "RESET_DEVICE", GetMaxMemSlots: "GET_MAX_MEM_SLOTS", AddMemReg: "ADD_MEM_REG", RemMemReg: "REM_MEM_REG",
	SetStatus: "SET_STATUS", GetStatus: "GET_STATUS",
}

// String returns QEMU's name of the request, or its number.
func (r Request) String() string {
	if r < numRequests && requestNames[r] != "" {
		return requestNames[r]
	}
	return "request " + strconv.FormatUint(uint64(r), 10)
}

// hasFiles says whether descriptors may come with the request.
func (r Request) hasFiles() bool {
	switch r {
	case SetMemTable, AddMemReg, SetVringKick, SetVringCall, SetVringErr:
		return true
	}
	return false
}

// ProtocolFeatures is the word of GET/SET_PROTOCOL_FEATURES.
type ProtocolFeatures uint64

// Bits of ProtocolFeatures. Two must never be offered: INBAND_NOTIFICATIONS
// (14) and XEN_MMAP (17), because QEMU acknowledges every bit it has a number
// for, whether it implements it or not.
const (
	ProtoMQ          = 0
	ProtoLogSHMFD    = 1
	ProtoRARP        = 2
	ProtoReplyAck    = 3
	ProtoNetMTU      = 4
	ProtoResetDevice = 13
	ProtoMemSlots    = 15
	ProtoStatus      = 16
)

// DefaultProtocol is what a Session offers.
const DefaultProtocol ProtocolFeatures = 1<<ProtoMQ | 1<<ProtoReplyAck | 1<<ProtoNetMTU |
	1<<ProtoResetDevice | 1<<ProtoMemSlots | 1<<ProtoStatus

// Has reports whether bit is set.
func (p ProtocolFeatures) Has(bit uint) bool { return p>>bit&1 != 0 }
