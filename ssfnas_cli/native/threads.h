// Sharing the chunks of a computation among threads.
//
// OpenMP's loops end when every thread has arrived at the end, even one that the system has not let run because another
// process has its core; on a busy machine two threads are then slower than one. Here a computation ends when its chunks
// are done: a thread that comes too late finds it closed, and nobody waits for it. A forked process has only the thread
// that called fork, which then does all chunks itself.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace {

class Team {
public:
    static Team &current() {
        static const int registered = pthread_atfork(nullptr, nullptr, [] { team() = new Team; });
        (void)registered;
        return *team();
    }

    // Call work(chunk) for every chunk in [0, num_chunks), on at most `threads` threads; which one takes which is open.
    template <class Work>
    void run(int num_chunks, int threads, const Work &work) {
        if (threads < 2 || num_chunks < 2 || !busy_.try_lock()) {
            for (int chunk = 0; chunk < num_chunks; ++chunk) work(chunk);
            return;
        }
        for (; num_helpers_ < threads - 1; ++num_helpers_) std::thread([this] { help(); }).detach();
        call_ = [](const void *context, int chunk) { (*static_cast<const Work *>(context))(chunk); };
        context_ = &work, num_chunks_ = num_chunks;
        most_helpers_ = threads - 1;
        next_ = 0;
        open();
        take_chunks();
        close();
        busy_.unlock();
    }

private:
    static constexpr int SPINS = 2000;  // looks at a variable before a thread sleeps: some 50 microseconds

    static Team *&team() {
        static Team *instance = new Team;  // never deleted: its threads may outlast every static object
        return instance;
    }
    static void pause() {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }

    void take_chunks() {
        for (int chunk; (chunk = next_.fetch_add(1)) < num_chunks_;) call_(context_, chunk);
    }
    void open() {
        state_ = OPEN;
        ++computation_;
        if (sleepers_ == 0) return;
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    // Let no more helpers in, and wait for those that still have a chunk.
    void close() {
        state_ &= ~OPEN;
        for (int look = 0; look < SPINS && state_ != 0; ++look) pause();
        if (state_ == 0) return;
        std::unique_lock<std::mutex> lock(mutex_);
        left_.wait(lock, [this] { return state_ == 0; });
    }

    bool join() {
        int state = state_;
        while ((state & OPEN) && state / HELPER < most_helpers_)
            if (state_.compare_exchange_weak(state, state + HELPER)) return true;
        return false;
    }
    void leave() {
        if ((state_ -= HELPER) != 0) return;
        std::lock_guard<std::mutex> lock(mutex_);
        left_.notify_all();
    }
    void help() {
        for (long seen = 0;;) {
            for (int look = 0; look < SPINS && computation_ == seen; ++look) pause();
            if (computation_ == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleepers_;
                wake_.wait(lock, [this, seen] { return computation_ != seen; });
                --sleepers_;
            }
            seen = computation_;
            if (join()) {
                take_chunks();
                leave();
            }
        }
    }

    static constexpr int OPEN = 1, HELPER = 2;
    std::mutex busy_;                   // held by the thread whose computation this is
    std::atomic<int> state_{0};         // OPEN while helpers may join, plus HELPER for each that has joined
    std::atomic<int> next_{0};          // the next chunk to take
    std::atomic<long> computation_{0};  // counts them
    std::atomic<int> sleepers_{0};
    std::atomic<int> most_helpers_{0};  // that may join
    int num_helpers_ = 0, num_chunks_ = 0;
    void (*call_)(const void *, int) = nullptr;
    const void *context_ = nullptr;
    std::mutex mutex_;  // for the two conditions
    std::condition_variable wake_, left_;
};

template <class Work>
void for_each_chunk(int num_chunks, int threads, const Work &work) {
    Team::current().run(num_chunks, threads, work);
}

}  // namespace
