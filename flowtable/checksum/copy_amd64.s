#include "textflag.h"

// What is read and written next is asked for step by step while this is copied: asked for at once it would fill the few places for lines that are
// awaited, and the copy wait for its own. Go's assembler has no PREFETCHW: PREFETCHW_R9 is one for the line at an offset from R9.
#define PREFETCHW_R9(off) BYTE $0x41; BYTE $0x0f; BYTE $0x0d; BYTE $0x89; LONG $off

// func copySumAVX2(dst, src *byte, n int, read, write *byte) uint64
//
// As sumAVX2, and every word is stored as it was read.
TEXT ·copySumAVX2(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ read+24(FP), R8
	MOVQ write+32(FP), R9
	MOVQ CX, DX
	VPCMPEQW Y15, Y15, Y15
	VPSLLW $15, Y15, Y14 // 0x8000 in each word
	VPSRLW $15, Y15, Y15 // 1 in each word
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	CMPQ CX, $128
	JB tail

loop:
	PREFETCHW_R9(0)
	PREFETCHW_R9(64)
	PREFETCHT0 (R8)
	PREFETCHT0 64(R8)
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y6
	VMOVDQU 96(SI), Y7
	VMOVDQU Y4, (DI)
	VMOVDQU Y5, 32(DI)
	VMOVDQU Y6, 64(DI)
	VMOVDQU Y7, 96(DI)
	VPXOR Y4, Y14, Y4
	VPXOR Y5, Y14, Y5
	VPXOR Y6, Y14, Y6
	VPXOR Y7, Y14, Y7
	VPMADDWD Y15, Y4, Y4
	VPMADDWD Y15, Y5, Y5
	VPMADDWD Y15, Y6, Y6
	VPMADDWD Y15, Y7, Y7
	VPADDD Y4, Y0, Y0
	VPADDD Y5, Y1, Y1
	VPADDD Y6, Y2, Y2
	VPADDD Y7, Y3, Y3
	ADDQ $128, SI
	ADDQ $128, DI
	ADDQ $128, R8
	ADDQ $128, R9
	SUBQ $128, CX
	CMPQ CX, $128
	JAE loop

tail:
	TESTQ CX, CX
	JZ done
	VMOVDQU (SI), Y4
	VMOVDQU Y4, (DI)
	VPXOR Y4, Y14, Y4
	VPMADDWD Y15, Y4, Y4
	VPADDD Y4, Y0, Y0
	ADDQ $32, SI
	ADDQ $32, DI
	SUBQ $32, CX
	JMP tail

done:
	VPADDD Y1, Y0, Y0
	VPADDD Y3, Y2, Y2
	VPADDD Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0x4e, X0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0xb1, X0, X1
	VPADDD X1, X0, X0
	VMOVD X0, AX
	VZEROUPPER
	MOVLQSX AX, AX
	SHLQ $14, DX // n/2 words, 0x8000 each
	ADDQ DX, AX
	MOVQ AX, ret+40(FP)
	RET

// func copySumAVX512(dst, src *byte, n int, read, write *byte, sum uint32) uint32
//
// The same with VPDPWSSD, which multiplies, adds neighbours and accumulates in one. What comes before the first 32 bytes of dst that are aligned,
// and what is left at the end, are vectors under a mask; masked words count as 0 and get their 0x8000 as all others do. R8 counts the bytes
// of all vectors.
//
// The vectors have 32 bytes, though there are some of 64: those slow the processor's clock down for a while, for all that it does, and
// the copy waits for memory, not for them. Registers from 16 on have no upper half that others would have to wait for: no VZEROUPPER.
TEXT ·copySumAVX512(SB), NOSPLIT, $0-52
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), DX
	MOVQ read+24(FP), R11
	MOVQ write+32(FP), R9
	VPTERNLOGD $0xff, Y31, Y31, Y31
	VPSLLW $15, Y31, Y30 // 0x8000 in each word
	VPSRLW $15, Y31, Y31 // 1 in each word
	VPXORQ Y16, Y16, Y16
	VPXORQ Y17, Y17, Y17
	VPXORQ Y18, Y18, Y18
	VPXORQ Y19, Y19, Y19
	XORL R8, R8
	MOVL $-1, R12
	CMPQ DX, $64
	JB half
	MOVQ DI, CX
	NEGQ CX
	ANDQ $31, CX // bytes to where dst is aligned
	JZ aligned
	TESTQ $1, CX
	JNZ aligned // a word would be torn: then lines are
	BZHIL CX, R12, R10
	KMOVD R10, K1
	VMOVDQU8.Z (SI), K1, Y20
	VMOVDQU8 Y20, K1, (DI)
	VPXORQ Y20, Y30, Y20
	VPDPWSSD Y31, Y20, Y19
	ADDQ CX, SI
	ADDQ CX, DI
	SUBQ CX, DX
	ADDQ $32, R8

aligned:
	SUBQ $256, DX
	JB lines

loop256:
	PREFETCHW_R9(0)
	PREFETCHW_R9(64)
	PREFETCHW_R9(128)
	PREFETCHW_R9(192)
	PREFETCHT0 (R11)
	PREFETCHT0 64(R11)
	PREFETCHT0 128(R11)
	PREFETCHT0 192(R11)
	VMOVDQU64 (SI), Y20
	VMOVDQU64 32(SI), Y21
	VMOVDQU64 64(SI), Y22
	VMOVDQU64 96(SI), Y23
	VMOVDQU64 128(SI), Y24
	VMOVDQU64 160(SI), Y25
	VMOVDQU64 192(SI), Y26
	VMOVDQU64 224(SI), Y27
	VMOVDQU64 Y20, (DI)
	VMOVDQU64 Y21, 32(DI)
	VMOVDQU64 Y22, 64(DI)
	VMOVDQU64 Y23, 96(DI)
	VMOVDQU64 Y24, 128(DI)
	VMOVDQU64 Y25, 160(DI)
	VMOVDQU64 Y26, 192(DI)
	VMOVDQU64 Y27, 224(DI)
	VPXORQ Y20, Y30, Y20
	VPXORQ Y21, Y30, Y21
	VPXORQ Y22, Y30, Y22
	VPXORQ Y23, Y30, Y23
	VPXORQ Y24, Y30, Y24
	VPXORQ Y25, Y30, Y25
	VPXORQ Y26, Y30, Y26
	VPXORQ Y27, Y30, Y27
	VPDPWSSD Y31, Y20, Y16
	VPDPWSSD Y31, Y21, Y17
	VPDPWSSD Y31, Y22, Y18
	VPDPWSSD Y31, Y23, Y19
	VPDPWSSD Y31, Y24, Y16
	VPDPWSSD Y31, Y25, Y17
	VPDPWSSD Y31, Y26, Y18
	VPDPWSSD Y31, Y27, Y19
	ADDQ $256, SI
	ADDQ $256, DI
	ADDQ $256, R8
	ADDQ $256, R9
	ADDQ $256, R11
	SUBQ $256, DX
	JAE loop256

lines:
	ADDQ $256, DX
	SUBQ $64, DX
	JB odd

line:
	VMOVDQU64 (SI), Y20
	VMOVDQU64 32(SI), Y21
	VMOVDQU64 Y20, (DI)
	VMOVDQU64 Y21, 32(DI)
	VPXORQ Y20, Y30, Y20
	VPXORQ Y21, Y30, Y21
	VPDPWSSD Y31, Y20, Y16
	VPDPWSSD Y31, Y21, Y17
	ADDQ $64, SI
	ADDQ $64, DI
	ADDQ $64, R8
	SUBQ $64, DX
	JAE line

odd:
	ADDQ $64, DX

half:
	CMPQ DX, $32
	JB rest
	VMOVDQU64 (SI), Y20
	VMOVDQU64 Y20, (DI)
	VPXORQ Y20, Y30, Y20
	VPDPWSSD Y31, Y20, Y18
	ADDQ $32, SI
	ADDQ $32, DI
	ADDQ $32, R8
	SUBQ $32, DX

rest:
	TESTQ DX, DX
	JZ sum
	BZHIL DX, R12, R10
	KMOVD R10, K1
	VMOVDQU8.Z (SI), K1, Y20
	VMOVDQU8 Y20, K1, (DI)
	VPXORQ Y20, Y30, Y20
	VPDPWSSD Y31, Y20, Y17
	ADDQ $32, R8

sum:
	VPADDD Y17, Y16, Y16
	VPADDD Y19, Y18, Y18
	VPADDD Y18, Y16, Y16
	VEXTRACTI32X4 $1, Y16, X17
	VPADDD X17, X16, X16
	VPSHUFD $0x4e, X16, X17
	VPADDD X17, X16, X16
	VPSHUFD $0xb1, X16, X17
	VPADDD X17, X16, X16
	VMOVD X16, AX
	SHLL $14, R8 // 0x8000 for each word
	ADDL R8, AX
	ADDL sum+40(FP), AX // of at most 2^15 words and one: no carry
	RORXL $16, AX, CX
	ADDL CX, AX
	SHRL $16, AX
	MOVL AX, ret+48(FP)
	RET
