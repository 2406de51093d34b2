#include "textflag.h"

// func prefetchHead(memory *byte, at uint64)
TEXT ·prefetchHead(SB), NOSPLIT, $0-16
	MOVQ memory+0(FP), SI
	ADDQ at+8(FP), SI
	PREFETCHT0 -32(SI)
	PREFETCHT0 (SI)
	PREFETCHT0 64(SI)
	RET
